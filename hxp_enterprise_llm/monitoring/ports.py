"""A port that is served as soon as it can be had, and whose clients cannot hold on to it."""

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
"""How often a port that is taken, or an address that is not there, is tried again."""
CONNECTION_SEC = 10.0
"""How long a connection may last: one request, which is answered in milliseconds."""
CONNECTIONS = 200
"""How many connections there may be at once; more get 503."""
REQUEST_BYTES = 16 * 1024


class OneRequest(H11Protocol):
    """A connection that ends after its answer, or after ten seconds: uvicorn waits for ever for half a request."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the ten seconds."""
        super().connection_made(transport)
        self._end = self.loop.call_later(CONNECTION_SEC, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget them."""
        if self._end:
            self._end.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn, with signals left to the monitor."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Port:
    """One address and port with what is served there. `trouble` says why it is not, "" while it is.

    `key` is the setting that the port comes from, for people to change. `changed` is called when `trouble` has changed.
    """

    def __init__(
        self, what: str, key: str, address: str, port: int, *, application: Any, changed: Callable[[], None]
    ) -> None:
        self.trouble = ""
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

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.error("%s", trouble)
        elif not trouble:
            log.info("%s on %s", self._what, self.where)
        self.trouble = trouble
        self._changed()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self._address, self._port))
            listening.listen(CONNECTIONS)
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
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=REQUEST_BYTES,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)
        try:
            await server.serve(sockets=[listening])
        finally:
            listening.close()
