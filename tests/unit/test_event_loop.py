"""The event loop when the kernel refuses to watch another descriptor with epoll."""

import asyncio
import errno
import os
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import pytest

from hxp_enterprise_llm.system import event_loop

from .served import served

MESSAGE = b"x" * (1 << 22)
"""Longer than the kernel's buffers: the loop has to wait until it can read, and until it can write."""


@contextmanager
def no_watches_left(reason: int = errno.ENOSPC) -> Iterator[None]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(reason, os.strerror(reason))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selectors.EpollSelector, "register", refuse)
        yield


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def talk(address: tuple[str, int]) -> bytes:
    """Send a message to the server, and return its answer."""
    client = socket.socket()
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, address)
    reader, writer = await asyncio.open_connection(sock=client)
    writer.write(MESSAGE)
    answer = await reader.readexactly(len(MESSAGE))
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("from_the_start", [True, False])
def test_connections_are_served_without_watches_left(from_the_start: bool) -> None:
    async def run(full: ExitStack) -> None:
        server = await asyncio.start_server(echo, sock=socket.create_server(("127.0.0.1", 0)))
        address = server.sockets[0].getsockname()
        async with server:
            before = asyncio.create_task(talk(address))
            await asyncio.sleep(0)
            full.enter_context(no_watches_left())
            assert await asyncio.gather(before, *(talk(address) for _ in range(5))) == [MESSAGE] * 6
            full.close()
            assert await asyncio.gather(*(talk(address) for _ in range(5))) == [MESSAGE] * 5

    with ExitStack() as full:
        if from_the_start:
            full.enter_context(no_watches_left())
        with asyncio.Runner(loop_factory=event_loop.new) as runner:
            runner.run(asyncio.wait_for(run(full), 60))


def test_model_server_accepts_clients_without_watches_left() -> None:
    async def application(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def ask(port: int) -> bytes:
        client = socket.socket()
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def run() -> None:
        async with served(application) as port:
            with no_watches_left():
                for answer in await asyncio.gather(*(ask(port) for _ in range(20))):
                    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok")

    with asyncio.Runner(loop_factory=event_loop.new) as runner:
        runner.run(asyncio.wait_for(run(), 60))


def test_watches_are_found_wherever_they_are() -> None:
    with event_loop.Selector() as selector, ExitStack() as ends:
        pairs = [tuple(map(ends.enter_context, socket.socketpair())) for _ in range(2)]
        (watched, _), (polled, far) = pairs
        selector.register(watched, selectors.EVENT_READ, "watched")
        with no_watches_left():
            selector.register(polled, selectors.EVENT_WRITE, "polled")
        assert [selector.get_key(one).data for one in (watched, polled)] == ["watched", "polled"]
        assert {selector.get_map()[one].data for one in (watched, polled)} == {"watched", "polled"}
        assert [(key.data, events) for key, events in selector.select(0)] == [("polled", selectors.EVENT_WRITE)]
        selector.modify(polled, selectors.EVENT_READ, "polled")
        assert selector.select(0) == []
        far.send(b"x")
        assert [key.data for key, _ in selector.select(60)] == ["polled"]
        selector.unregister(polled)
        with pytest.raises(KeyError):
            selector.get_key(polled)
        assert selector.select(0) == []


def test_other_errors_of_epoll_are_raised() -> None:
    with event_loop.Selector() as selector, no_watches_left(errno.ENOMEM), pytest.raises(OSError, match="memory"):
        selector.register(0, selectors.EVENT_READ)
