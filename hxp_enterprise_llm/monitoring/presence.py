"""From moments at which an instance is seen up or down to the periods in between."""

LONGEST_GAP_SEC = 120.0
"""A longer time between two looks means that the clock was set or the host was asleep: nobody knows what was then."""


class Presence:
    """When one instance was up, and when it was down and should not have been (seconds since the epoch).

    `until` is where the last period on record ends.
    """

    def __init__(self, until: float = 0.0) -> None:
        self._up: bool | None = None
        self._begin = until
        self._until = until
        self._fresh = True

    def seen(self, up: bool | None, since: float, now: float) -> list[tuple[bool, float, float]]:
        """Take in how it is now, None for "off, as it should be or nobody knows"; the periods to record for that.

        `since` is when the unit last changed: the first look after a pause of the monitor reaches back that far.
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
