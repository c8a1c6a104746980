"""The deadlines of a stop. All parts of a stop share them, so that their sum stays below systemd's TimeoutStopSec=."""

import time
from dataclasses import dataclass

from hxp_enterprise_llm.settings.keys import STOP_MARGIN_SEC

GRACE_SEC = 5.0
"""Time after the drain in which a server aborts its remaining requests and exits by itself (seconds)."""
EXIT_SEC = 2.0
"""Time in which the main process exits once its servers are killed (seconds)."""


@dataclass(frozen=True)
class StopPlan:
    """The deadlines of one stop, set when SIGTERM arrives. All are times of the monotonic clock (seconds)."""

    begin: float
    drained: float
    """Requests still in flight are aborted at this time."""
    killed: float
    """Servers that still run are killed at this time."""
    ended: float
    """The main process stops waiting and exits at this time."""
    timeout: float
    """systemd kills the main process at this time."""

    @classmethod
    def of(cls, drain_sec: float, begin: float) -> "StopPlan":
        """The plan of a stop at `begin` that lets requests take DRAIN_TIMEOUT_SEC (seconds)."""
        drained, timeout = begin + drain_sec, begin + drain_sec + STOP_MARGIN_SEC
        return cls(begin, drained, drained + GRACE_SEC, timeout - EXIT_SEC, timeout)


def left(deadline: float) -> float:
    """Seconds until a deadline, 0 if it has passed."""
    return max(0.0, deadline - time.monotonic())
