"""Ports in use, and clients that do not disconnect; on loopback, with ports that the kernel chooses."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from hxp_enterprise_llm.monitoring import ports, probe
from hxp_enterprise_llm.monitoring.ports import Port
from hxp_enterprise_llm.settings.address import Address

LONGEST_SEC = 60.0
"""The time after which an event counts as missing; generous, since no test measures with it."""


async def soon(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONGEST_SEC):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let connections and probes take as long as a slow machine needs."""
    for limit in ("REQUEST_SEC", "CONNECTION_SEC"):
        monkeypatch.setattr(ports, limit, LONGEST_SEC)
    monkeypatch.setattr(probe, "ANSWER_SEC", LONGEST_SEC)


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def port_at(
    number: int, address: str = "127.0.0.1", handler: Callable[[Request], Awaitable[PlainTextResponse]] = hello
) -> Port:
    application = Starlette(routes=[Route("/", handler)])
    return Port("health", "HEALTH_PORT", address, number, application=application, changed=lambda: None)


async def serving(port: Port, scenario: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(port.run())
    try:
        await port.tried.wait()
        await scenario()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def half_a_request(number: int) -> bytes:
    """Send half a request; return the answer until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Half")
    try:
        return await asyncio.wait_for(reader.read(), LONGEST_SEC)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def answer(number: int) -> httpx.Response:
    async with probe.client() as client:
        return await client.get(f"http://127.0.0.1:{number}/")


def test_connection_serves_one_request_and_incomplete_requests_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "REQUEST_SEC", 1.0)
    number = free_port()

    async def scenario() -> None:
        held = [asyncio.create_task(half_a_request(number)) for _ in range(20)]
        said = await answer(number)
        assert (said.text, said.headers["connection"]) == ("hello", "close")
        assert await asyncio.gather(*held) == [b""] * 20

    asyncio.run(serving(port_at(number), scenario))


def test_unread_response_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "REQUEST_SEC", 0.1)
    monkeypatch.setattr(ports, "CONNECTION_SEC", 0.5)
    number = free_port()
    answered = asyncio.Event()

    async def endless(_: Request) -> PlainTextResponse:
        # Longer than the request may take to arrive, which no longer matters.
        await asyncio.sleep(0.3)
        answered.set()
        return PlainTextResponse("x" * 50_000_000)

    async def scenario() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(answered.wait(), LONGEST_SEC)
        await soon(lambda: open_connections(number) == 0)
        writer.transport.abort()

    asyncio.run(serving(port_at(number, handler=endless), scenario))


def descriptors() -> list[int]:
    """The descriptors of this process, including the one that they were read with."""
    return [int(file.name) for file in Path("/proc/self/fd").iterdir()]


def open_connections(number: int) -> int:
    """Number of descriptors of this process that are the server's end of a connection to a port."""
    count = 0
    for descriptor in descriptors():
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as found:
                    count += found.getsockname()[1:2] == (number,) and bool(found.getpeername())
    return count


@pytest.mark.usefixtures("patient")
def test_oldest_idle_connections_are_closed_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "CONNECTIONS", 20)
    monkeypatch.setattr(ports, "BACKLOG", 5)
    number = free_port()
    go = asyncio.Event()

    begun = []

    async def slow(request: Request) -> PlainTextResponse:
        begun.append(request)
        await go.wait()
        return PlainTextResponse("hello")

    async def scenario() -> None:
        early = asyncio.create_task(answer(number))
        await soon(lambda: len(begun) == 1)
        held: list[asyncio.Task[bytes]] = []
        for _ in range(60):
            held.append(asyncio.create_task(half_a_request(number)))
            # One after the other, so that the first is the oldest.
            await soon(lambda: open_connections(number) == min(len(held) + 1, 20))
            await soon(lambda: sum(task.done() for task in held) == max(0, len(held) - 19))
        assert [task.done() for task in held] == [True] * 41 + [False] * 19
        late = asyncio.create_task(answer(number))
        await soon(lambda: len(begun) == 2)
        go.set()
        for asked in (early, late):
            assert (await asked).text == "hello"
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    asyncio.run(serving(port_at(number, handler=slow), scenario))


@pytest.mark.usefixtures("patient")
def test_connection_beyond_the_limit_is_closed_if_all_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "CONNECTIONS", 2)
    number = free_port()
    go = asyncio.Event()

    begun = []

    async def slow(request: Request) -> PlainTextResponse:
        begun.append(request)
        await go.wait()
        return PlainTextResponse("hello")

    async def scenario() -> None:
        asked = [asyncio.create_task(answer(number)) for _ in range(2)]
        await soon(lambda: len(begun) == 2)
        with pytest.raises(httpx.TransportError):
            await answer(number)
        go.set()
        assert [(await one).text for one in asked] == ["hello"] * 2

    asyncio.run(serving(port_at(number, handler=slow), scenario))


def test_port_in_use_is_bound_once_free(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ports, "AGAIN_SEC", 0.1)
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as thief:
        number = int(thief.getsockname()[1])
        port = port_at(number)

        async def scenario() -> None:
            assert "another program has the port; end it, or change HEALTH_PORT" in port.problem
            await asyncio.sleep(0.35)
            thief.close()
            await soon(lambda: not port.problem)
            assert (await answer(number)).text == "hello"

        asyncio.run(serving(port, scenario))
    assert caplog.text.count("cannot be served") == 1, "logged once, however often it is tried"


def test_missing_address_is_reported() -> None:
    port = port_at(free_port(), "192.0.2.1")

    async def scenario() -> None:
        assert "SERVER_IP in /etc/default/citadel-llm must be an address of this host" in port.problem

    asyncio.run(serving(port, scenario))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", ""),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "answers 503"),
        (b"HTTP/1.1 307 There\r\nLocation: http://example.invalid/\r\n\r\n", "answers 307"),
        (b"\xff\xfe garbage\r\n\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, "does not answer in HTTP"),
        (b"", "does not answer in HTTP"),
        (None, "does not answer within 0.2 s"),
    ],
)
def test_probe_result_follows_the_status_line(monkeypatch: pytest.MonkeyPatch, reply: bytes | None, said: str) -> None:
    monkeypatch.setattr(probe, "ANSWER_SEC", 0.2)

    async def scenario() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if reply is None:
                await asyncio.sleep(1)
            else:
                writer.write(reply)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = Address(scheme="http", host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        async with probe.client() as client:
            assert (await probe.ask(client, address) or "").endswith(said)
            server.close()
            assert (await probe.ask(client, address) or "").endswith("cannot be reached")

    asyncio.run(scenario())


def test_descriptor_shortage_gives_no_probe_result() -> None:
    async def scenario() -> None:
        address = Address(scheme="http", host="127.0.0.1", port=free_port())
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with probe.client() as client:
            # The first probe opens the descriptors that stay open.
            assert str(await probe.ask(client, address)).endswith("cannot be reached")
            used = max(descriptors()) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
            held = []
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    while True:
                        held.append(os.open("/dev/null", os.O_RDONLY))
                assert await probe.ask(client, address) is None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for descriptor in held:
                    os.close(descriptor)
            assert str(await probe.ask(client, address)).endswith("cannot be reached")

    asyncio.run(scenario())
