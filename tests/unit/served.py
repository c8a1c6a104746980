"""A real uvicorn with the worker's protocols and middleware, and its clients, in one event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import uvicorn

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import Limits
from hxp_enterprise_llm.worker.bounded import BoundedHttp, BoundedWebSocket
from hxp_enterprise_llm.worker.connections import PRIVATE_BACKLOG
from hxp_enterprise_llm.worker.traffic import Traffic

LIMITS = Limits(request_bytes=100_000, connections=64)
UNUSED: dict[str, Any] = {
    "requests": 0,
    "body_bytes": 0,
    "taken": 0,
    "leaving": False,
    "key_digests": (),
    "metrics_digests": (),
    "server": None,
    "engine": None,
    "is_open": False,
}
"""The state of the middleware before a server has started."""


@asynccontextmanager
async def served(
    application: Callable[..., Any],
    *,
    credentials: Credentials | None = None,
    limits: Limits = LIMITS,
    is_open: bool = True,
) -> AsyncIterator[int]:
    """Serve an ASGI application until the end of the block.

    Gives the port that clients use, or the private port unless the server `is_open`.
    """
    state = SimpleNamespace(state=SimpleNamespace(server=None, engine_client=None))

    async def with_app(scope: Any, receive: Any, send: Any) -> None:
        await Traffic(application)({**scope, "app": state}, receive, send)

    with mock.patch.multiple(Traffic, **UNUSED):
        config = uvicorn.Config(
            with_app, http=BoundedHttp, ws=BoundedWebSocket, lifespan="off", log_config=None, backlog=PRIVATE_BACKLOG
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        Traffic.server = state.state.server = server
        Traffic.limit(limits)
        Traffic.take(credentials or Credentials())
        private, listener = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        with listener:
            await server.startup(sockets=[private])
            if is_open:
                await Traffic.open(listener)
            try:
                yield (listener if is_open else private).getsockname()[1]
            finally:
                for client in list(server.server_state.connections):
                    client.transport.abort()
                await server.shutdown(sockets=[private])


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
