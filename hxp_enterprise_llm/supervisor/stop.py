"""The deadlines of a stop. All parts of a stop share them, so that their sum stays below systemd's TimeoutStopSec=."""

import time
from dataclasses import dataclass

from hxp_enterprise_llm.generator.drop_ins import STOP_MARGIN_SEC

GRACE_SEC = 5.0
"""What a server gets beyond the drain to abort the remaining requests and end by itself."""
EXIT_SEC = 2.0
"""What the main process itself needs to end, once its servers are killed."""


@dataclass(frozen=True)
class StopPlan:
    """Made once, when SIGTERM comes. All times are seconds of the monotonic clock."""

    begin: float
    drained: float
    """Requests that are in flight then are aborted."""
    killed: float
    """Servers that run then are killed."""
    ended: float
    """The main process waits for nothing any more."""
    timeout: float
    """systemd kills the main process."""

    @classmethod
    def of(cls, drain_sec: float, begin: float) -> "StopPlan":
        """The plan of a stop at `begin` that lets requests take DRAIN_TIMEOUT_SEC (seconds)."""
        drained, timeout = begin + drain_sec, begin + drain_sec + STOP_MARGIN_SEC
        return cls(begin, drained, drained + GRACE_SEC, timeout - EXIT_SEC, timeout)


def left(deadline: float) -> float:
    """Seconds until a deadline, 0 if it has passed."""
    return max(0.0, deadline - time.monotonic())
