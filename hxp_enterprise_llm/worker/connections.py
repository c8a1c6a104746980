"""Connections of a server's clients: accepted, counted, and closed where there are too many.

Clients that have sent a valid key must always get in, and so must the probes of /health, which carry none. So each new
connection is accepted. If there are too many, the connection closes that has been open longest without a valid key.
"""

import asyncio
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from hxp_enterprise_llm.protocol.worker import BACKLOG

CONNECTION = "citadel_llm.connection"
"""Key of a request's `Connection` in the state of its ASGI scope."""
SHARE_WITHOUT_KEY = 4
"""One of so many connections is kept for those that have not sent a valid key."""
HANDSHAKE_SEC = 10.0
"""How long a TLS handshake may take."""
PRIVATE = 256
"""Limit of the connections on the private port, where only the main process has something to ask."""
PRIVATE_BACKLOG = 128
"""Connections that wait on the private port, and so those accepted in one turn of the event loop. Being fewer than
PRIVATE, they do not close a connection before its request is read."""
AT_ONCE = 16
"""Connections accepted in one turn of the event loop."""
RETRY_SEC = 1.0
"""Pause after a failure to accept a connection, for lack of memory or descriptors."""
# A connection holds this much from before its TLS handshake on; with asyncio's 256 KiB, a thousand would be 256 MB.
sslproto.SSLProtocol.max_size = 32 * 1024


class ClientProtocol(Protocol):
    """The protocol of a connection, from the end of its TLS handshake on."""

    transport: asyncio.Transport

    @property
    def idle(self) -> bool:
        """Whether the connection waits for its client: the model works on nothing that the client has asked."""


class Connection:
    """A connection of a client, from its acceptance to its end; one of `others`."""

    def __init__(self, others: "Connections") -> None:
        self.others = others
        self.protocol: ClientProtocol | None = None
        self.handshake: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """As its protocol says; a connection in its TLS handshake has none and is not idle."""
        return self.protocol is not None and self.protocol.idle

    def close(self) -> None:
        """Close the connection at once."""
        if self.protocol:
            self.protocol.transport.abort()
        elif self.handshake:
            self.handshake.cancel()


class Connections:
    """The connections of a server's clients, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._limit_with_key = limit - limit // SHARE_WITHOUT_KEY
        # In the order of their acceptance, and of their last requests.
        self._without_key: dict[Connection, None] = {}
        self._with_key: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._without_key) + len(self._with_key)

    @property
    def in_handshake(self) -> int:
        """The number of connections in their TLS handshake."""
        return sum(connection.protocol is None for connection in self._without_key)

    def add(self, connection: Connection) -> None:
        """Count a connection, once; if there are too many, close the one that has been open longest without a key."""
        self._without_key[connection] = None
        if len(self) > self._limit:
            self._close(next(iter(self._without_key)))

    def admit(self, connection: Connection) -> bool:
        """A request with a valid key has come on `connection`; False if there is no room for it.

        Makes room by closing the connection that has waited longest for its client.
        """
        if self._with_key.pop(connection, self) is self:
            if len(self._with_key) >= self._limit_with_key:
                idle = next((other for other in self._with_key if other.idle), None)
                if idle is None:
                    return False
                self._close(idle)
            self._without_key.pop(connection, None)
        self._with_key[connection] = None
        return True

    def remove(self, connection: Connection) -> None:
        """Count a connection no longer: it has ended."""
        self._without_key.pop(connection, None)
        self._with_key.pop(connection, None)

    def _close(self, connection: Connection) -> None:
        self.remove(connection)
        connection.close()


class Acceptor:
    """Accepts connections from a listener until `close`, with the methods of asyncio.Server that uvicorn calls.

    `make_protocol` makes the protocol of a connection. asyncio's server does not report connections before their TLS
    handshake has ended, so they could neither be counted nor closed.
    """

    def __init__(
        self,
        listener: socket.socket,
        certificate: ssl.SSLContext | None,
        connections: Connections,
        make_protocol: Callable[[Connection], asyncio.Protocol],
    ) -> None:
        self._listener, self._certificate = listener, certificate
        self._connections, self._make_protocol = connections, make_protocol
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._begin()

    def _begin(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._loop.remove_reader(self._listener)
                self._retry = self._loop.call_later(RETRY_SEC, self._begin)
                return
            connection = Connection(self._connections)
            connection.handshake = self._loop.create_task(self._connect(accepted, connection))
            self._connections.add(connection)

    async def _connect(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._make_protocol(connection),
                accepted,
                ssl=self._certificate,
                ssl_handshake_timeout=HANDSHAKE_SEC if self._certificate else None,
            )
        except OSError:
            # The client has left, or the handshake failed.
            pass
        finally:
            connection.handshake = None
            if connection.protocol is None:
                self._connections.remove(connection)
                with suppress(OSError):
                    accepted.close()

    def close(self) -> None:
        """Accept no more connections; those accepted stay open."""
        if self._retry:
            self._retry.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    async def wait_closed(self) -> None:
        """Return: nothing is left to do after `close`."""
