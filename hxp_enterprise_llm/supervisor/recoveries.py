"""How often the main process recovers from a failure by itself, and how soon."""

from collections import deque

PAUSES_SEC, WINDOW_SEC = (0.0, 1.0, 5.0), 300.0
"""The main process recovers from the first failure within the window at once, from the next ones after a pause. At the
failure after the last pause it gives up, and systemd restarts the service."""


class Recoveries:
    """Remembers the failures of one main process."""

    def __init__(self) -> None:
        self._failures: deque[float] = deque(maxlen=len(PAUSES_SEC))

    def pause(self, now: float) -> float | None:
        """Seconds to wait before the recovery from a failure at `now` (monotonic, seconds); None after too many."""
        recent = sum(now - earlier < WINDOW_SEC for earlier in self._failures)
        if recent == len(PAUSES_SEC):
            return None
        self._failures.append(now)
        return PAUSES_SEC[recent]
