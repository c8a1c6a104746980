"""The requests of a vLLM API server: asked for a key, counted, let in and led away when the main process says so.

vLLM builds its server around an application of its own; its --middleware is the way in. Runs in vLLM's process.
"""

import asyncio
import hmac
import json
import socket
import ssl
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import BACKLOG
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.system import tls

OPEN_PATH = "/health"
"""What a load balancer asks: it tells nothing but that the server runs."""
UNAUTHORIZED = json.dumps(
    {"error": {"message": "a key is missing or wrong", "type": "invalid_request_error", "code": "invalid_api_key"}}
).encode()
"""In the form of the OpenAI API, which its clients turn into an error of theirs."""
POLICY_VIOLATION = 1008  # RFC 6455


class _Work:
    """One request that a model has to work for, counted once."""

    _counted = False

    def begin(self) -> None:
        Traffic.requests += not self._counted
        self._counted = True

    def end(self) -> None:
        Traffic.requests -= self._counted
        self._counted = False


class _Talk:
    """A WebSocket, which one key may hold open for hours."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self._closed = False

    async def receive(self) -> Any:
        message = await self._receive()
        # What came before the client has heard of it counts no more either.
        return {"type": "websocket.disconnect", "code": POLICY_VIOLATION} if self._closed else message

    async def send(self, message: Any) -> None:
        if not self._closed:
            await self._send(message)

    async def close(self) -> None:
        self._closed = True
        # It may be closed already, by either side.
        with suppress(OSError, RuntimeError):
            await self._send({"type": "websocket.close", "code": POLICY_VIOLATION})


class _Arrival(asyncio.Protocol):
    """A client from its TCP connection to the end of its TLS handshake, if there is one; then uvicorn counts it.

    Of one whose handshake fails nobody is told, but its transport lets go of this.
    """

    def __init__(self, make: Callable[[], asyncio.Protocol]) -> None:
        self._make = make
        Traffic.arriving.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        protocol = self._make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        Traffic.arriving.discard(self)


class Traffic:
    """ASGI middleware, of which a server has one.

    `requests` are those in flight that a model has to work for, `sent` the pieces of answers sent so far. vLLM's own
    gauge of running requests does not do: it shows one once the engine has taken it up, which a hung one never does.
    """

    key_digests: tuple[str, ...] = ()
    taken = 0
    """How often it was given credentials."""
    _tls: ssl.SSLContext | None = None
    requests = 0
    sent = 0
    is_open = False
    arriving: ClassVar[weakref.WeakSet[_Arrival]] = weakref.WeakSet()
    _talks: ClassVar[set[_Talk]] = set()
    _closing: ClassVar[set[asyncio.Task[None]]] = set()
    _leaving = False
    _server: Any = None  # uvicorn's

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if not self._may(scope):
            await self._refuse(scope, send)
            return
        if scope["type"] != "http":
            talk = _Talk(scope, receive, send)
            Traffic._talks.add(talk)
            try:
                await self._app(scope, talk.receive, talk.send)
            finally:
                Traffic._talks.discard(talk)
            return
        Traffic._server = scope["app"].state.server

        work = _Work() if scope["method"] == "POST" else None

        async def received() -> Any:
            message = await receive()
            if message["type"] == "http.request" and not self._may(scope):
                # Its key was revoked after its head came: nothing has been worked on yet.
                return {"type": "http.disconnect"}
            # What a client has not sent in full, the model cannot work on.
            if work and message["type"] == "http.request" and not message.get("more_body"):
                work.begin()
            return message

        async def sent(message: Any) -> None:
            # Answers to probes go on while the engine hangs.
            Traffic.sent += work is not None
            if Traffic._leaving and message["type"] == "http.response.start":
                # The client's next request then comes by a new connection, which the successor accepts.
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            await self._app(scope, received, sent)
        finally:
            if work:
                work.end()

    @staticmethod
    def _may(scope: Any) -> bool:
        """Whether a request carries one of the keys. vLLM itself would leave all but /v1 open, /metrics among them."""
        if not Traffic.key_digests or scope.get("path") == OPEN_PATH:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.decode("latin-1").partition(" ")
        found = digest(key.strip())
        # All are compared, each in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(found, one) for one in Traffic.key_digests]
        return kind.lower() == "bearer" and any(matches)

    async def _refuse(self, scope: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": UNAUTHORIZED})

    @classmethod
    def connections(cls) -> int:
        """How many clients are connected, idle ones and those in their TLS handshake among them."""
        return len(cls._server.server_state.connections) + len(cls.arriving) if cls._server else 0

    @classmethod
    def take(cls, credentials: Credentials) -> None:
        """Ask for these keys from now on, and show this certificate to who connects once the door is opened (anew).

        WebSockets that none of the keys would open are closed.
        """
        cls.key_digests = credentials.key_digests
        cls._tls = tls.server(credentials.certificate, credentials.private_key) if credentials.certificate else None
        cls.taken += 1
        for talk in [talk for talk in cls._talks if not cls._may(talk.scope)]:
            # A client that does not read keeps nobody waiting.
            task = asyncio.get_running_loop().create_task(talk.close())
            cls._closing.add(task)
            task.add_done_callback(cls._closing.discard)

    @classmethod
    async def open(cls, listener: socket.socket) -> None:
        """Accept connections from `listener` from now on, and no more by the way that they came before.

        Those that are there already go on, with the certificate that they were shown. Nothing happens once uvicorn has
        been told to end: it has closed its doors, and would wait for new ones that nobody closes.
        """
        server = cls._server
        if server.should_exit:
            return

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = server.config.http_protocol_class(
                config=server.config, server_state=server.server_state, app_state=server.lifespan.state
            )
            return made

        loop = asyncio.get_running_loop()
        # A copy, which it closes in the end: the queue of those who wait stays where it is.
        doors = await loop.create_server(lambda: _Arrival(protocol), sock=listener.dup(), ssl=cls._tls, backlog=BACKLOG)
        for before in server.servers:
            before.close()
        # uvicorn closes these when it ends.
        server.servers = [doors]
        cls.is_open = True

    @classmethod
    def leave(cls) -> None:
        """Accept no more connections, and close each after its next answer; idle ones end by uvicorn's own timeout."""
        cls._leaving, cls.is_open = True, False
        for doors in cls._server.servers:
            doors.close()
