"""Wait for an event instead of a time: a test passes on a slow machine, and is quick on a fast one."""

import time
from collections.abc import Callable

from machine import MachineError

BOUND_SEC = 300.0
"""The time after which an event counts as missing. It is generous, because no test measures with it."""


def until(condition: Callable[[], object], what: str) -> float:
    """Wait until a condition holds; return the seconds waited. `what` names the condition in the failure message.

    An observation that fails (a command, a missing file or entry) counts as "not yet". Raises AssertionError.
    """
    begin = time.monotonic()
    while True:
        seen: object
        try:
            seen = condition()
            if seen:
                return time.monotonic() - begin
        except (LookupError, StopIteration, OSError, ValueError, MachineError) as error:
            seen = error
        waited = time.monotonic() - begin
        assert waited < BOUND_SEC, f"after {waited:.0f} s still not: {what} (last seen: {seen!r})"
        time.sleep(0.05)
