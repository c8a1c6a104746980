"""Periods in which an instance was up or down, from observations."""

LONGEST_GAP_SEC = 120.0
"""A longer time between two observations counts as unknown: the clock was set, or the host was suspended."""


class Presence:
    """When one instance was up, and when it was down but should have been up (seconds since the epoch).

    `until` is the end of the last recorded period.
    """

    def __init__(self, until: float = 0.0) -> None:
        self._up: bool | None = None
        self._begin = until
        self._until = until
        self._fresh = True

    def seen(self, up: bool | None, since: float, now: float) -> list[tuple[bool, float, float]]:
        """Update with the current state (None if unknown, or down as intended); returns the periods to record.

        `since` is when the unit last changed: the first period after a pause of the monitor begins then.
        """
        found = []
        if self._fresh:
            self._fresh = False
            self._up, self._begin = up, min(now, max(self._until, since)) if up else now
        elif not 0 <= now - self._until <= LONGEST_GAP_SEC:
            self._up, self._begin = up, now
        elif self._up is not None:
            found.append((self._up, self._begin, now))
        if up is not self._up:
            self._up, self._begin = up, now
        elif not found and up is not None and now > self._begin:
            found.append((up, self._begin, now))
        self._until = now
        return found
