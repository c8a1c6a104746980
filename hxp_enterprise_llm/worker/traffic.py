"""Middleware of a vLLM API server: authenticates and counts requests, opens the server to clients and closes it.

vLLM loads it by its name. Runs in vLLM's process.
"""

import asyncio
import hmac
import json
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import Limits
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.system import tls
from hxp_enterprise_llm.worker.connections import CONNECTION, PRIVATE, Acceptor, Connection, Connections
from hxp_enterprise_llm.worker.waiting import Engine

OPEN_PATH = "/health"
"""Needs no key, for load balancers: the answer only says that the server runs."""
METRICS_PATH, METRICS_METHODS = "/metrics", ("GET", "HEAD")
"""What a key for metrics may request. POST is not among them: it would count as a request to the model."""
UNAUTHORIZED = json.dumps(
    {"error": {"message": "a key is missing or wrong", "type": "invalid_request_error", "code": "invalid_api_key"}}
).encode()
"""An error as in the OpenAI API, which its clients turn into an exception."""
POLICY_VIOLATION = 1008  # RFC 6455
NAME = "hxp_enterprise_llm.worker.traffic.Traffic"
"""Name of the middleware for vLLM."""


def outermost(others: Iterable[str]) -> list[str]:
    """The names for vLLM's --middleware with which this middleware gets each request before `others`.

    vLLM adds them in this order, and the one that is added last wraps all others
    (vllm/entrypoints/serve/middleware/register.py of 0.32).
    """
    return [*(name for name in others if name != NAME), NAME]


class _Work:
    """A request that the model has to work on, counted once."""

    _counted = False

    def begin(self) -> None:
        Traffic.requests += not self._counted
        self._counted = True

    def end(self) -> None:
        Traffic.requests -= self._counted
        self._counted = False


class _Talk:
    """A WebSocket, which can stay open for hours with one key."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self._closed = False

    async def receive(self) -> Any:
        message = await self._receive()
        # Ignore messages that the client sent before it learned of the close.
        return {"type": "websocket.disconnect", "code": POLICY_VIOLATION} if self._closed else message

    async def send(self, message: Any) -> None:
        if not self._closed:
            await self._send(message)

    async def close(self) -> None:
        self._closed = True
        # Either side may have closed it already.
        with suppress(OSError, RuntimeError):
            await self._send({"type": "websocket.close", "code": POLICY_VIOLATION})


class Traffic:
    """ASGI middleware; a server has one.

    `requests` counts the requests in flight that the model has to work on: those that a drain waits for. Which of them
    wait for the engine, `engine` tells.
    """

    key_digests: tuple[str, ...] = ()
    metrics_digests: tuple[str, ...] = ()
    taken = 0
    """How often the server has been given credentials."""
    _tls: ssl.SSLContext | None = None
    requests = 0
    body_bytes = 0
    """Size of the bodies of all requests that the application has not finished."""
    is_open = False
    limits: Limits
    clients: Connections
    private: Connections
    """Connections on the private port, on which the main process asks whether the model is ready."""
    _talks: ClassVar[set[_Talk]] = set()
    _closing: ClassVar[set[asyncio.Task[None]]] = set()
    leaving = False
    server: Any = None  # uvicorn's
    engine: Engine | None = None  # None until the first request

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a connection or a request (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if not self.is_allowed(scope):
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
        Traffic.server = scope["app"].state.server
        if Traffic.engine is None and scope["app"].state.engine_client:
            Traffic.engine = Engine(scope["app"].state.engine_client)

        # Only POST counts: other requests take no time of the engine.
        work = _Work() if scope["method"] == "POST" else None

        async def received() -> Any:
            message = await receive()
            if message["type"] == "http.request" and not self.is_allowed(scope):
                # The key was revoked after the request's headers arrived; nothing has been computed yet.
                return {"type": "http.disconnect"}
            # The model cannot work on an incomplete request.
            if work and message["type"] == "http.request" and not message.get("more_body"):
                work.begin()
            return message

        async def sent(message: Any) -> None:
            if Traffic.leaving and message["type"] == "http.response.start":
                # The client opens a new connection for its next request, which the successor accepts.
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            await self._app(scope, received, sent)
        finally:
            if work:
                work.end()

    @staticmethod
    def is_allowed(scope: Any) -> bool:
        """Whether a request carries a key for its path. vLLM's --api-key protects only some paths, not /metrics."""
        if not Traffic.key_digests or scope.get("path") == OPEN_PATH:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.decode("latin-1").partition(" ")
        found = digest(key.strip())
        # The exact path, although vLLM serves metrics at everything that starts with it.
        metrics = scope.get("path") == METRICS_PATH and scope.get("method") in METRICS_METHODS
        valid = [*Traffic.key_digests, *(Traffic.metrics_digests if metrics else ())]
        # Compare with all keys, each in constant time, so that the duration reveals nothing.
        matches = [hmac.compare_digest(found, one) for one in valid]
        return kind.lower() == "bearer" and any(matches)

    async def _refuse(self, scope: Any, send: Any) -> None:
        # Before a WebSocket is open its client takes an HTTP answer (ASGI, WebSocket denial response).
        response = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": f"{response}.start", "status": 401, "headers": headers})
        await send({"type": f"{response}.body", "body": UNAUTHORIZED})

    @classmethod
    def connections(cls) -> int:
        """Number of connected clients, including idle clients and clients in their TLS handshake."""
        return len(cls.server.server_state.connections) + cls.clients.in_handshake if cls.server else 0

    @classmethod
    def limit(cls, limits: Limits) -> None:
        """Set the limits on clients; call it before the server starts."""
        cls.limits, cls.clients, cls.private = limits, Connections(limits.connections), Connections(PRIVATE)

    @classmethod
    def take(cls, credentials: Credentials) -> None:
        """Require these keys from now on, and present this certificate to clients after the next `open`.

        WebSockets whose key is no longer valid are closed.
        """
        cls.key_digests, cls.metrics_digests = credentials.key_digests, credentials.metrics_digests
        cls._tls = tls.server(credentials.certificate, credentials.private_key) if credentials.certificate else None
        cls.taken += 1
        for talk in [talk for talk in cls._talks if not cls.is_allowed(talk.scope)]:
            # In the background: a client that does not read must not delay the caller.
            task = asyncio.get_running_loop().create_task(talk.close())
            cls._closing.add(task)
            task.add_done_callback(cls._closing.discard)

    @classmethod
    async def open(cls, listener: socket.socket) -> None:
        """Accept connections from `listener` only from now on.

        Existing connections keep the certificate that they were shown. Does nothing once uvicorn is shutting down: it
        has closed its sockets, and would wait for a new one for ever.
        """
        server = cls.server
        if server.should_exit:
            return

        def make_protocol(connection: Connection) -> asyncio.Protocol:
            made: asyncio.Protocol = server.config.http_protocol_class(
                config=server.config,
                server_state=server.server_state,
                app_state={**server.lifespan.state, CONNECTION: connection},
            )
            return made

        # A duplicate, because uvicorn closes it at the end: waiting connections stay in the listener's queue.
        accepting = Acceptor(listener.dup(), cls._tls, cls.clients, make_protocol)
        for before in server.servers:
            before.close()
        # uvicorn closes these when it ends.
        server.servers = [accepting]
        cls.is_open = True

    @classmethod
    def leave(cls) -> None:
        """Accept no more connections, and close each after its next answer; uvicorn closes idle connections itself."""
        cls.leaving, cls.is_open = True, False
        for accepting in cls.server.servers:
            accepting.close()
