"""How often the main process mends a failure by itself, and how soon."""

from collections import deque

PAUSES_SEC, WINDOW_SEC = (0.0, 1.0, 5.0), 300.0
"""The first failure within the window is mended at once, the next ones after a pause; at one more than there are
pauses the main process gives up, and systemd starts all of it anew."""


class Recoveries:
    """Remembers the failures of one main process."""

    def __init__(self) -> None:
        self._failures: deque[float] = deque(maxlen=len(PAUSES_SEC))

    def pause(self, now: float) -> float | None:
        """Seconds to wait before a failure at `now` (monotonic, seconds) is mended; None if there were too many."""
        recent = sum(now - earlier < WINDOW_SEC for earlier in self._failures)
        if recent == len(PAUSES_SEC):
            return None
        self._failures.append(now)
        return PAUSES_SEC[recent]
