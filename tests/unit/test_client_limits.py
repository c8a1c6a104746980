"""What a client may send, how long it may take, and how many may be connected; with a real uvicorn and its parser."""

import asyncio
import json
import logging
import socket
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import certificates as made
import pytest

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import Limits
from hxp_enterprise_llm.settings import keys
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.system import event_loop
from hxp_enterprise_llm.worker import bounded, connections
from hxp_enterprise_llm.worker.traffic import Traffic

from .served import LIMITS, served, until

KEYS = Credentials((digest("key"),), metrics_digests=(digest("metrics"),))
KEY = b"Authorization: Bearer key\r\n"
SHORT_SEC = 0.2
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in the event loop that servers use."""
    with asyncio.Runner(loop_factory=event_loop.new) as runner:
        runner.run(asyncio.wait_for(test, 60))


class Application:
    """An application that reads a request and answers it; `hold` keeps its answers back."""

    def __init__(self) -> None:
        self.called = 0
        self.seen: list[str] = []
        self.body = 0
        self.hold: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.called += 1
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            message = await receive()
            await send({"type": "websocket.send", "text": message["text"]})
            return
        more = True
        while more:
            message = await receive()
            self.seen.append(message["type"])
            if message["type"] == "http.disconnect":
                return
            self.body += len(message.get("body", b""))
            more = message.get("more_body", False)
        if self.hold and scope["path"] != "/health":
            await self.hold.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connected(port: int, tls: bool = False) -> AsyncIterator[Client]:
    """A client of the server."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def say(port: int, *pieces: bytes, tls: bool = False) -> bytes:
    """What the server answers to a client until it closes the connection; the client may be cut off while it sends."""
    async with connected(port, tls) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        return await rest(reader)


async def rest(reader: asyncio.StreamReader) -> bytes:
    got = b""
    try:
        while piece := await reader.read(65536):
            got += piece
    except ConnectionError:
        pass
    return got


def request(path: str = "/v1/models", fields: bytes = KEY, method: str = "GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (method.encode(), path.encode(), fields)


def closing(fields: bytes = b"") -> bytes:
    """Fields of a request that is the last on its connection."""
    return KEY + b"Connection: close\r\n" + fields


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of an error; it must be one that clients of the OpenAI API understand."""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = head.lower().split(b"\r\n")
    assert b"connection: close" in fields and b"content-type: application/json" in fields
    assert b"content-length: %d" % len(body) in fields
    error = json.loads(body)["error"]
    status = int(head.split()[1])
    assert error["message"] and error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return status, error["code"]


def padded(size: int) -> bytes:
    """A request whose head has `size` bytes."""
    head = request(fields=closing(b"X: \r\n"))
    return head.replace(b"X: ", b"X: " + b"x" * (size - len(head)))


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize(("size", "status"), [(65536, 200), (65537, 431)])
def test_head_of_64_kib_is_served_and_a_larger_head_is_refused(size: int, status: int, pieces: int) -> None:
    async def test() -> None:
        application = Application()
        async with served(application) as port:
            head = padded(size)
            assert len(head) == size
            each = -(-size // pieces)
            answer = await say(port, *(head[at : at + each] for at in range(0, size, each)))
            assert int(answer.split()[1]) == status
            if status == 431:
                assert refusal(answer) == (431, "head_too_large")
        assert application.called == (status == 200)

    run(test())


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000,
        b"GET /" + b"x" * 1_000_000,
        b"\r\n" * 500_000,
        request("/", closing(), "POST")[:-2]
        + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: "
        + b"x" * 1_000_000,
        request("/", closing(), "POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n2;x=" + b"x" * 1_000_000,
    ],
    ids=["fields", "field", "path", "lines", "trailer", "extension"],
)
def test_endless_head_is_refused(head: bytes) -> None:
    async def test() -> None:
        application = Application()
        async with served(application) as port:
            assert refusal(await say(port, head)) == (431, "head_too_large")
        assert application.body <= 2

    run(test())


@pytest.mark.parametrize(("fields", "status"), [(100, 200), (101, 431)])
def test_head_has_at_most_100_fields(fields: int, status: int) -> None:
    async def test() -> None:
        async with served(Application()) as port:
            # request() has three.
            answer = await say(port, request(fields=closing(b"a: b\r\n" * (fields - 3))))
            assert int(answer.split()[1]) == status

    run(test())


@pytest.mark.parametrize("said", [b"", b"\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
@pytest.mark.parametrize("tls", [False, True])
def test_connection_whose_first_head_is_late_is_closed(monkeypatch: pytest.MonkeyPatch, said: bytes, tls: bool) -> None:
    monkeypatch.setattr(bounded, "HEAD_SEC", SHORT_SEC)

    async def test() -> None:
        certificate = Credentials((), made.CERTIFICATE, made.KEY) if tls else None
        async with served(Application(), credentials=certificate) as port:
            assert await say(port, said, tls=tls) == b""

    run(test())


def test_head_that_comes_byte_by_byte_is_late_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "HEAD_SEC", SHORT_SEC)

    async def test() -> None:
        async with served(Application()) as port, connected(port) as (reader, writer):
            answer = asyncio.create_task(rest(reader))
            writer.write(b"GET / HTTP/1.1\r\nX: ")
            while not answer.done():
                writer.write(b"x")
                await asyncio.sleep(SHORT_SEC / 20)
            assert answer.result() == b""

    run(test())


def test_kept_connection_has_time_from_the_first_byte_of_its_next_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded, "HEAD_SEC", 1.0)

    async def test() -> None:
        async with served(Application()) as port, connected(port) as (reader, writer):
            for _ in range(2):
                writer.write(request())
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                # uvicorn closes idle connections, later than the test looks.
                await asyncio.sleep(1.5)
                assert not reader.at_eof()
            writer.write(request()[:-2])
            assert await rest(reader) == b""

    run(test())


def test_tls_handshake_that_is_late_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_SEC", SHORT_SEC)

    async def test() -> None:
        async with served(Application(), credentials=Credentials((), made.CERTIFICATE, made.KEY)) as port:
            assert await say(port, b"") == await say(port, b"\x16\x03\x01") == b""
            assert Traffic.connections() == 0

    run(test())


def test_connection_with_tls_holds_little_memory() -> None:
    async def test() -> None:
        idle: list[Client] = []
        async with served(Application(), credentials=Credentials((), made.CERTIFICATE, made.KEY)) as port:
            tracemalloc.start()
            try:
                await open_without_key(idle, port, 20)
                await until(lambda: Traffic.connections() == 20)
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            # This includes the clients' own memory.
            assert held / 20 < 64 * 1024
            for _, writer in idle:
                writer.transport.abort()

    run(test())


@pytest.mark.parametrize("tls", [False, True])
def test_announced_body_that_is_too_large_gets_413_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    # Without TLS the server can say that it sends no more; with TLS it waits for the client to close the connection.
    monkeypatch.setattr(bounded, "LINGER_SEC", SHORT_SEC if tls else 60)

    async def test() -> None:
        application = Application()
        certificate = Credentials((), made.CERTIFICATE, made.KEY) if tls else None
        async with served(application, credentials=certificate) as port:
            head = request("/v1/completions", KEY + b"Content-Length: 100001\r\n", "POST")
            assert refusal(await say(port, head, tls=tls)) == (413, "request_too_large")
            # A client that goes on sending can read the answer too.
            assert refusal(await say(port, head, *[b"x" * 65536] * 16, tls=tls)) == (413, "request_too_large")
        assert application.called == 0

    run(test())


def test_little_is_read_of_what_a_refused_client_still_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "LINGER_SEC", SHORT_SEC)

    def send_all(port: int) -> tuple[int, bytes]:
        sent = 0
        with socket.socket() as client:
            client.settimeout(60)
            client.connect(("127.0.0.1", port))
            client.sendall(request("/v1/completions", b"Content-Length: 1000000000\r\n", "POST"))
            with suppress(ConnectionError):
                while sent < 1_000_000_000:
                    sent += client.send(b"x" * 65536)
            return sent, client.recv(65536)

    async def test() -> None:
        async with served(Application(), credentials=KEYS) as port:
            sent, answer = await asyncio.to_thread(send_all, port)
            assert refusal(answer) == (401, "invalid_api_key")
            # The kernel takes some megabytes too.
            assert sent < 100_000_000

    run(test())


@pytest.mark.parametrize("size", [1000, 16384, 60_000])
def test_chunked_body_that_grows_too_large_gets_413(size: int) -> None:
    async def test() -> None:
        application = Application()
        async with served(application) as port:
            chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
            head = request("/v1/completions", KEY + b"Transfer-Encoding: chunked\r\n", "POST")
            answer = await say(port, head, *[chunk] * (LIMITS.request_bytes // size + 1))
            assert refusal(answer) == (413, "request_too_large")
            assert application.body <= LIMITS.request_bytes
            await until(lambda: application.seen[-1] == "http.disconnect")

    run(test())


@pytest.mark.parametrize("chunked", [False, True])
def test_body_of_the_largest_size_is_served(chunked: bool) -> None:
    async def test() -> None:
        application = Application()
        async with served(application) as port:
            fields, body = b"Content-Length: 100000\r\n", b"x" * LIMITS.request_bytes
            if chunked:
                fields, body = b"Transfer-Encoding: chunked\r\n", b"186a0\r\n" + body + b"\r\n0\r\n\r\n"
            answer = await say(port, request("/v1/completions", closing(fields), "POST"), body)
            assert answer.startswith(b"HTTP/1.1 200") and application.body == LIMITS.request_bytes

    run(test())


def test_bodies_of_all_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "BODIES_LEAST", 0)
    full, small = b"x" * LIMITS.request_bytes, b"x" * bounded.SMALL_BODY

    def post(body: bytes) -> bytes:
        return request("/v1/completions", closing(b"Content-Length: %d\r\n" % len(body)), "POST") + body

    async def test() -> None:
        application = Application()
        application.hold = asyncio.Event()
        async with served(application, credentials=KEYS) as port:
            waiting = [asyncio.create_task(say(port, post(full))) for _ in range(bounded.BODIES)]
            await until(lambda: Traffic.body_bytes == application.body == bounded.BODIES * len(full))
            answer = await say(port, post(full))
            assert refusal(answer) == (503, "too_many_bodies") and b"\r\nretry-after: 1\r\n" in answer
            waiting.append(asyncio.create_task(say(port, post(small))))
            await until(lambda: Traffic.body_bytes == bounded.BODIES * len(full) + len(small))
            application.hold.set()
            assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*waiting))
            assert Traffic.body_bytes == 0
            assert (await say(port, post(full))).endswith(b"ok")

    run(test())


@pytest.mark.parametrize(
    "body", [b"x" * 10, b"{}" + request("/v1/completions", KEY + b"Content-Length: 2\r\n", "POST") + b"{}"]
)
def test_body_of_a_client_that_leaves_is_forgotten(body: bytes) -> None:
    """One has not sent all of its body, another has sent the next request too."""

    async def test() -> None:
        application = Application()
        application.hold = asyncio.Event()
        async with served(application, credentials=KEYS) as port:
            async with connected(port) as (_, writer):
                length = b"Content-Length: 2\r\n" if body.startswith(b"{}") else b"Content-Length: 100\r\n"
                writer.write(request("/v1/completions", KEY + length, "POST") + body)
                await until(lambda: Traffic.body_bytes == (4 if body.startswith(b"{}") else 10))
            await until(lambda: Traffic.connections() == 0)
            application.hold.set()
            await until(lambda: Traffic.body_bytes == 0)

    run(test())


def test_body_that_comes_too_slowly_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "BODY_WINDOW_SEC", 1.0)

    async def test() -> None:
        application = Application()
        async with served(application) as port:

            async def lasted(first: bytes) -> float:
                """How long the server reads a body of which nearly nothing comes behind its first part (seconds)."""
                begin = time.monotonic()
                async with connected(port) as (reader, writer):
                    writer.write(request("/v1/completions", KEY + b"Content-Length: 100000\r\n", "POST") + first)
                    answer = asyncio.create_task(rest(reader))
                    while not answer.done():
                        writer.write(b"x")
                        await asyncio.sleep(0.05)
                    assert answer.result() == b""
                return time.monotonic() - begin

            # The first part is enough for the first window only.
            enough, little = await asyncio.gather(lasted(b"x" * bounded.BODY_WINDOW_BYTES), lasted(b"x"))
            assert 1 <= little < enough and enough >= 2
            await until(lambda: application.seen.count("http.disconnect") == 2)

    run(test())


def test_answer_may_take_longer_than_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SEC", "BODY_WINDOW_SEC"):
        monkeypatch.setattr(bounded, name, 1.0)

    async def test() -> None:
        application = Application()
        application.hold = asyncio.Event()
        async with served(application) as port:
            head = request("/v1/completions", closing(b"Content-Length: 2\r\n"), "POST")
            answer = asyncio.create_task(say(port, head[:20], head[20:], b"{", b"}"))
            await until(lambda: application.body == 2)
            await asyncio.sleep(2.5)
            application.hold.set()
            assert (await answer).endswith(b"ok")

    run(test())


def test_empty_line_after_a_body_does_not_end_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "HEAD_SEC", SHORT_SEC)

    async def test() -> None:
        application = Application()
        application.hold = asyncio.Event()
        async with served(application) as port, connected(port) as (reader, writer):
            writer.write(request("/v1/completions", KEY + b"Content-Length: 2\r\n", "POST") + b"{}\r\n")
            await until(lambda: application.body == 2)
            await asyncio.sleep(3 * SHORT_SEC)
            application.hold.set()
            assert (await rest(reader)).endswith(b"ok")

    run(test())


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n\r\n"]
)
def test_other_protocols_get_400(said: bytes) -> None:
    async def test() -> None:
        async with served(Application()) as port:
            assert refusal(await say(port, said)) == (400, "invalid_request")

    run(test())


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
    ],
)
def test_request_of_ambiguous_length_gets_400(fields: bytes) -> None:
    async def test() -> None:
        application = Application()
        async with served(application) as port:
            answer = await say(
                port, request("/v1/completions", KEY + fields, "POST") + b"0\r\n\r\n" + request("/metrics")
            )
            assert refusal(answer) == (400, "invalid_request")
        assert application.called == 0

    run(test())


def test_request_without_a_key_costs_no_more_than_its_head() -> None:
    async def test() -> None:
        application = Application()
        async with served(application, credentials=KEYS) as port:
            wrong = request("/v1/completions", b"Authorization: Bearer other\r\nTransfer-Encoding: chunked\r\n", "POST")
            for head in (wrong, wrong.replace(b"POST", b"GET"), wrong.replace(b"/v1/completions", b"/health")):
                answer = await say(port, head, *[b"1\r\nx\r\n" * 20_000] * 10)
                assert refusal(answer) == (401, "invalid_api_key")
            assert application.called == 0
            answers = [await say(port, request(path, closing())) for path in ("/health", "/v1/models")]
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
            metrics = request("/metrics", b"Connection: close\r\nAuthorization: Bearer metrics\r\n")
            assert (await say(port, metrics)).startswith(b"HTTP/1.1 200")
            assert refusal(await say(port, metrics.replace(b"GET", b"PUT"))) == (401, "invalid_api_key")
            health = await say(port, request("/health?x=y", b"Connection: close\r\n"))
            assert health.startswith(b"HTTP/1.1 200")

    run(test())


def test_refusal_of_head_has_no_body() -> None:
    async def test() -> None:
        async with served(Application(), credentials=KEYS) as port:
            head, _, body = (await say(port, request(fields=b"", method="HEAD"))).partition(b"\r\n\r\n")
            got = await say(port, request(fields=b""))
            assert head.startswith(b"HTTP/1.1 401") and body == b""
            assert head == got.partition(b"\r\n\r\n")[0]

    run(test())


@pytest.mark.parametrize("before", [0, 1])
def test_connect_gets_400(before: int) -> None:
    async def test() -> None:
        application = Application()
        async with served(application, credentials=KEYS) as port, connected(port) as (reader, writer):
            for _ in range(before):
                writer.write(request())
                await reader.readuntil(b"ok")
            writer.write(request("localhost:80", method="CONNECT"))
            assert refusal(await rest(reader)) == (400, "invalid_request")
        assert application.called == before

    run(test())


def test_requests_may_follow_one_another_without_waiting() -> None:
    async def test() -> None:
        async with served(Application()) as port:
            answers = await say(port, request() * bounded.PIPELINED + request(fields=closing()))
            assert answers.count(b"HTTP/1.1 200") == bounded.PIPELINED + 1
            assert await say(port, request() * 10_000) == b""

    run(test())


@pytest.mark.parametrize("tls", [False, True])
def test_client_that_leaves_ends_the_first_of_its_requests_too(tls: bool) -> None:
    """Answering it would fail over TLS, with a traceback in the journal."""
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            seen.append((await receive())["type"])
        # As an application that has not noticed yet.
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"ok"})
        seen.append("answered")

    async def test() -> None:
        credentials = Credentials(KEYS.key_digests, made.CERTIFICATE, made.KEY) if tls else KEYS
        async with served(application, credentials=credentials) as port:
            async with connected(port, tls) as (_, writer):
                writer.write(request() * 3)
                await until(lambda: bool(seen))
            await until(lambda: len(seen) >= 3)
        assert seen == ["http.request", "http.disconnect", "answered"]

    run(test())


async def open_without_key(stack: list[Client], port: int, count: int) -> None:
    for _ in range(count):
        stack.append(await asyncio.open_connection("127.0.0.1", port))


def few(connections: int) -> Limits:
    return Limits(LIMITS.request_bytes, connections)


@pytest.mark.parametrize("tls", [False, True])
def test_connections_without_a_key_make_room_for_others(tls: bool) -> None:
    async def test() -> None:
        credentials = KEYS
        if tls:
            credentials = Credentials(KEYS.key_digests, made.CERTIFICATE, made.KEY)
        idle: list[Client] = []
        application = Application()
        async with served(application, credentials=credentials, limits=few(16)) as port:
            async with connected(port, tls) as (reader, writer):
                application.hold = asyncio.Event()
                writer.write(request(fields=closing()))
                await until(lambda: application.called == 1)
                await open_without_key(idle, port, 100)
                assert (await say(port, request("/health", b"Connection: close\r\n"), tls=tls)).endswith(b"ok")
                assert len(Traffic.clients) <= 16
                application.hold.set()
                assert (await say(port, request(fields=closing()), tls=tls)).endswith(b"ok")
                assert (await rest(reader)).endswith(b"ok"), "a request in flight was cut"
            closed = [await first.read(1) == b"" for first, _ in idle[:80]]
            assert all(closed)
            for _, writer in idle:
                writer.transport.abort()
            await until(lambda: Traffic.connections() == len(Traffic.clients) == 0)

    run(test())


def test_idle_connection_with_a_key_makes_room_for_another_with_a_key() -> None:
    async def test() -> None:
        async with served(Application(), credentials=KEYS, limits=few(16)) as port:
            kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(13)]
            for reader, writer in kept:
                writer.write(request())
                await reader.readuntil(b"ok")
            # Of 16 connections, 12 are for clients with a key.
            assert await kept[0][0].read() == b""
            kept[1][1].write(request(fields=closing()))
            assert (await rest(kept[1][0])).endswith(b"ok")
            for _, writer in kept:
                writer.transport.abort()

    run(test())


def test_connection_with_an_incomplete_request_makes_room_for_another_with_a_key() -> None:
    async def test() -> None:
        application = Application()
        async with served(application, credentials=KEYS, limits=few(16)) as port:
            slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
            for _, writer in slow:
                writer.write(request("/v1/completions", KEY + b"Content-Length: 2\r\n", "POST") + b"{")
            await until(lambda: application.body == 12)
            assert (await say(port, request(fields=closing()))).endswith(b"ok")
            assert await rest(slow[0][0]) == b""
            slow[1][1].write(b"}")
            assert (await slow[1][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            for _, writer in slow:
                writer.transport.abort()

    run(test())


@pytest.mark.parametrize("tls", [False, True])
def test_client_with_a_key_gets_its_answer_however_slowly_it_reads(tls: bool) -> None:
    large = 8 << 20

    async def application(scope: Any, receive: Any, send: Any) -> None:
        size = large if scope["path"] == "/large" else 2
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    async def test() -> None:
        credentials = Credentials(KEYS.key_digests, made.CERTIFICATE, made.KEY) if tls else KEYS
        async with served(application, credentials=credentials, limits=few(16)) as port, AsyncExitStack() as stack:
            reader, writer = await stack.enter_async_context(connected(port, tls))
            writer.write(request("/large", closing()))
            head = await reader.readuntil(b"\r\n\r\n")
            for _ in range(13):
                other, ask = await stack.enter_async_context(connected(port, tls))
                ask.write(request())
                await other.readuntil(b"xx")
            assert head.startswith(b"HTTP/1.1 200") and len(await rest(reader)) == large

    run(test())


@pytest.mark.parametrize("credentials", [KEYS, None], ids=["keys", "no keys"])
def test_request_gets_503_and_health_is_answered_if_all_connections_are_busy(credentials: Credentials | None) -> None:
    async def test() -> None:
        application = Application()
        async with served(application, credentials=credentials, limits=few(16)) as port:
            application.hold = asyncio.Event()
            busy = [asyncio.create_task(say(port, request(fields=closing()))) for _ in range(12)]
            await until(lambda: application.called == 12)
            answer = await say(port, request(fields=closing()))
            assert refusal(answer) == (503, "too_many_connections") and b"\r\nretry-after: 1\r\n" in answer
            assert (await say(port, request("/health", b"Connection: close\r\n"))).endswith(b"ok")
            application.hold.set()
            assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*busy))

    run(test())


def test_connections_on_the_private_port_make_room_for_the_main_process() -> None:
    async def test() -> None:
        idle: list[Client] = []
        async with served(Application(), credentials=KEYS, is_open=False) as port:
            for _ in range(3):
                await open_without_key(idle, port, connections.PRIVATE)
                assert (await say(port, request(fields=closing()))).endswith(b"ok")
                assert (await say(port, request("/health", b"Connection: close\r\n"))).endswith(b"ok")
                assert len(Traffic.private) <= connections.PRIVATE and len(Traffic.clients) == 0
            assert await idle[0][0].read() == b""
            async with connected(port) as (reader, writer):
                writer.write(request("/v1/realtime", KEY + UPGRADE))
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            for _, writer in idle:
                writer.transport.abort()
            await until(lambda: Traffic.connections() == len(Traffic.private) == 0)

    run(test())


UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)


def test_websocket_counts_until_its_end() -> None:
    async def test() -> None:
        async with served(Application(), credentials=KEYS) as port:
            assert refusal(await say(port, request("/v1/realtime", UPGRADE))) == (401, "invalid_api_key")
            async with connected(port) as (reader, writer):
                writer.write(request("/v1/realtime", KEY + UPGRADE))
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
                assert len(Traffic.clients) == 1
                writer.write(b"\x81\x82\x00\x00\x00\x00hi")
                assert await reader.readexactly(4) == b"\x81\x02hi"
            await until(lambda: Traffic.connections() == len(Traffic.clients) == 0)

    run(test())


def test_websocket_without_a_key_is_refused_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        application = Application()
        async with served(application, credentials=KEYS) as port:
            for path in ("/health", "/health?x=y", "/v1/realtime"):
                for fields in (UPGRADE, UPGRADE.partition(b"Sec-WebSocket-Key")[0]):
                    assert refusal(await say(port, request(path, fields))) == (401, "invalid_api_key")
        assert application.called == 0

    with caplog.at_level(logging.INFO):
        run(test())
    assert not [line for line in caplog.messages if "WebSocket" in line or "connection" in line]


def test_websocket_behind_a_request_that_is_being_answered_ends_the_connection() -> None:
    """The request must be told that its client has left: nothing else would end it."""
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            seen.append((await receive())["type"])

    async def test() -> None:
        async with served(application, credentials=KEYS) as port, connected(port) as (reader, writer):
            writer.write(request())
            await until(lambda: bool(seen))
            writer.write(request("/v1/realtime", KEY + UPGRADE))
            assert await rest(reader) == b""
            await until(lambda: Traffic.connections() == len(Traffic.clients) == 0 and len(seen) == 2)
        assert seen == ["http.request", "http.disconnect"]

    run(test())


@pytest.mark.parametrize(
    "extra", [b"X: " + b"x" * 20_000 + b"\r\n", b"Sec-WebSocket-Key: again\r\n", b"Sec-WebSocket-Version: 14\r\n"]
)
def test_malformed_websocket_ends_its_connection(extra: bytes) -> None:
    async def test() -> None:
        async with served(Application(), credentials=KEYS) as port:
            answer = await say(port, request("/v1/realtime", KEY + UPGRADE + extra))
            assert b"101" not in answer
            await until(lambda: Traffic.connections() == len(Traffic.clients) == 0)

    run(test())


def test_unit_may_open_more_descriptors_than_clients_may_open_connections() -> None:
    unit = (Path(__file__).parents[2] / "systemd/citadel-llm@.service").read_text(encoding="utf-8")
    limit = int(unit.partition("LimitNOFILE=")[2].split()[0])
    with pytest.raises(ValueError):
        keys.connections(str(limit // 2 + 1))
