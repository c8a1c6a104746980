"""An event loop that survives when no more descriptors can be watched with epoll.

The kernel limits the epoll watches of a user (`fs.epoll.max_user_watches`), and another process of the same user can
use them up. uvloop then aborts the process at the next connection, and asyncio's own selector loses the connection.
docs/decisions/0028 has the figures.
"""

import asyncio
import errno
import selectors
from collections import ChainMap
from collections.abc import Mapping
from selectors import EVENT_READ, SelectorKey
from typing import Any


class Selector(selectors.EpollSelector):
    """Watches with epoll, and with poll the descriptors for which epoll has no room.

    poll has no such limit, but takes time for each descriptor, also for those that are idle.
    """

    def __init__(self) -> None:
        super().__init__()
        self._polled = selectors.PollSelector()
        # Readable when a descriptor that epoll watches is ready.
        self._polled.register(self.fileno(), EVENT_READ)

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watch a descriptor (selectors.BaseSelector)."""
        try:
            return super().register(fileobj, events, data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return self._polled.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> SelectorKey:
        """Watch a descriptor no longer (selectors.BaseSelector)."""
        return self._polled.unregister(fileobj) if self._is_polled(fileobj) else super().unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watch a descriptor for other events (selectors.BaseSelector)."""
        if self._is_polled(fileobj):
            return self._polled.modify(fileobj, events, data)
        return super().modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """The descriptors that are ready (selectors.BaseSelector)."""
        if not self._overflows():
            return super().select(timeout)
        ready = [each for each in self._polled.select(timeout) if each[0].fd != self.fileno()]
        return ready + super().select(0)

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """The watched descriptors (selectors.BaseSelector)."""
        watched = super().get_map()
        # A ChainMap does not change its first mapping unless asked to.
        return ChainMap(self._polled.get_map(), watched) if self._overflows() else watched  # type: ignore[arg-type]

    def get_key(self, fileobj: Any) -> SelectorKey:
        """The watch of a descriptor (selectors.BaseSelector). Raises KeyError."""
        return self._polled.get_key(fileobj) if self._is_polled(fileobj) else super().get_key(fileobj)

    def close(self) -> None:
        """Watch nothing any longer (selectors.BaseSelector)."""
        self._polled.close()
        super().close()

    def _overflows(self) -> bool:
        return len(self._polled.get_map()) > 1

    def _is_polled(self, fileobj: Any) -> bool:
        return self._overflows() and fileobj in self._polled.get_map()


def new() -> asyncio.AbstractEventLoop:
    """Make such an event loop."""
    return asyncio.SelectorEventLoop(Selector())
