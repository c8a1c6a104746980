"""A port that the monitor serves as soon as it is free, and that no client can block."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("citadel-llm-monitor")

AGAIN_SEC = 10.0
"""Pause before the next attempt to bind a taken port or a missing address (seconds)."""
CONNECTION_SEC = 10.0
"""How long a connection may last (seconds). It carries one request, answered in milliseconds."""
REQUEST_SEC = 3.0
"""How much of that time the request may take to arrive (seconds)."""
CONNECTIONS = 512
"""Maximum number of open connections. For a new one, the connection that has been idle longest is closed."""
BACKLOG = 128
"""How many connections may wait in the kernel. At most this many are accepted before the first can be closed.

The connections of two ports must stay well below LimitNOFILE of the monitor's unit.
"""
REQUEST_BYTES = 16 * 1024


class OneRequest(H11Protocol):
    """A connection that ends after one answer or a timeout: uvicorn would wait for an incomplete request for ever."""

    _end: asyncio.TimerHandle | None = None
    _began = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer; if the port has too many connections, close the oldest one that waits for a request."""
        super().connection_made(transport)
        self._began = self.loop.time()
        self._end = self.loop.call_later(REQUEST_SEC, self._request_due)
        if len(self.connections) > CONNECTIONS:
            others = (one for one in self.connections if isinstance(one, OneRequest))
            # The new connection waits too, and is closed last.
            oldest = min((one for one in others if one.idle), key=lambda one: one._began)
            # uvicorn removes it as well, but only in the next iteration of the loop.
            self.connections.discard(oldest)
            oldest.transport.abort()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _request_due(self) -> None:
        if self.cycle is None:
            self.transport.abort()
        else:
            self._end = self.loop.call_later(CONNECTION_SEC - REQUEST_SEC, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._end:
            self._end.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the monitor has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


class Port:
    """An address and port, and the application served there. `problem` is why it is not served, or "".

    `key` is the setting of the port, for messages. `changed` is called when `problem` has changed.
    """

    def __init__(
        self, what: str, key: str, address: str, port: int, *, application: Any, changed: Callable[[], None]
    ) -> None:
        self.problem = ""
        self.where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        self.tried = asyncio.Event()
        self._what, self._key = what, key
        self._address, self._port = address, port
        self._application = application
        self._changed = changed

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            try:
                listening = self._bind()
            except OSError as error:
                self._say(f"{self._what} cannot be served on {self.where} ({error.strerror}): {self._advice(error)}")
                self.tried.set()
                await asyncio.sleep(AGAIN_SEC)
                continue
            self._say("")
            self.tried.set()
            await self._serve(listening)

    def _advice(self, error: OSError) -> str:
        tried = f"trying again every {AGAIN_SEC:g} s"
        if error.errno == 98:
            return f"another program has the port; end it, or change {self._key} in /etc/default/citadel-llm; {tried}"
        return f"SERVER_IP in /etc/default/citadel-llm must be an address of this host; {tried}"

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("%s", problem)
        elif not problem:
            log.info("%s on %s", self._what, self.where)
        self.problem = problem
        self._changed()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self._address, self._port))
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        return listening

    async def _serve(self, listening: socket.socket) -> None:
        config = uvicorn.Config(
            self._application,
            http=OneRequest,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            headers=[("Connection", "close")],
            backlog=BACKLOG,
            h11_max_incomplete_event_size=REQUEST_BYTES,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)
        try:
            await server.serve(sockets=[listening])
        finally:
            listening.close()
