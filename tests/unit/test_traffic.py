"""The counters of the middleware, with an application and a client that a test provides."""

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import certificates as made
import pytest

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.supervisor.server_process import LARGEST_MESSAGE
from hxp_enterprise_llm.worker import heartbeat
from hxp_enterprise_llm.worker.traffic import NAME, POLICY_VIOLATION, Traffic, outermost

from .served import served, until

PART, REST = {"type": "http.request", "more_body": True}, {"type": "http.request", "more_body": False}


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("requests", 0), ("leaving", False), ("key_digests", ()), ("metrics_digests", ())):
        monkeypatch.setattr(Traffic, name, value)
    for name in ("taken", "server", "is_open"):
        monkeypatch.setattr(Traffic, name, getattr(Traffic, name))


def scope(method: str, path: str) -> dict[str, Any]:
    app = SimpleNamespace(state=SimpleNamespace(server=None, engine_client=None))
    return {"type": "http", "method": method, "path": path, "headers": [], "app": app}


def counts(method: str, path: str, messages: Iterator[dict[str, Any]]) -> list[int]:
    """Requests in flight after each message of a client."""
    seen = []

    async def application(_: Any, receive: Any, send: Any) -> None:
        for message in messages:
            assert await receive() == message
            seen.append(Traffic.requests)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    todo = list(messages)
    messages = iter(todo)
    given = iter(todo)

    async def receive() -> dict[str, Any]:
        return next(given)

    async def send(_: Any) -> None:
        pass

    asyncio.run(Traffic(application)(scope(method, path), receive, send))
    assert Traffic.requests == 0
    return seen


def test_request_counts_once_received_completely() -> None:
    assert counts("POST", "/v1/completions", iter([PART, PART, REST])) == [0, 0, 1]


def test_client_disconnecting_mid_request_is_not_counted() -> None:
    assert counts("POST", "/v1/completions", iter([PART, {"type": "http.disconnect"}])) == [0, 0]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_probes_do_not_count_as_requests(path: str) -> None:
    assert counts("GET", path, iter([REST])) == [0]


@pytest.mark.parametrize("others", [["a.B", "c.D"], [NAME, "a.B", "c.D"]])
def test_middleware_of_the_settings_is_added_before_ours(others: list[str]) -> None:
    """vLLM adds middleware in this order, and each wraps those before it."""
    assert outermost(others) == ["a.B", "c.D", NAME]


def test_draining_server_closes_connection_after_response(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    async def application(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    monkeypatch.setattr(Traffic, "leaving", True)
    asyncio.run(Traffic(application)(scope("GET", "/v1/models"), None, send))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"connection", b"close")]


@pytest.mark.parametrize("error", [ValueError("\N{PILE OF POO}" * 5000), ValueError("x" * 10_000)])
def test_long_error_fits_into_a_message(error: Exception) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        heartbeat.tell_failure(near, error)
        assert json.loads(far.recv(LARGEST_MESSAGE))["failed"]["final"] is False


def at_a_real_server(tls: bool, do: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Run uvicorn with the middleware, and call `do` with a client that has connected and sent nothing."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def run() -> None:
        credentials = Credentials((), made.CERTIFICATE, made.KEY) if tls else Credentials()
        async with served(application, credentials=credentials) as port:
            with socket.socket() as client:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
                client.settimeout(60)
                await do(client)

    asyncio.run(run())


def answer_to(client: socket.socket, tls: bool) -> bytes:
    """The answer to a client that now sends its request."""
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = context.wrap_socket(client)
    with client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.mark.parametrize("tls", [True, False])
def test_draining_server_answers_client_connected_before_drain(tls: bool) -> None:
    async def speak_late(client: socket.socket) -> None:
        await until(lambda: Traffic.connections() == 1)
        Traffic.leave()
        await asyncio.sleep(0.1)
        assert Traffic.connections() == 1, "the main process would end the server now"
        answer = await asyncio.to_thread(answer_to, client, tls)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer and answer.endswith(b"ok")
        await until(lambda: Traffic.connections() == 0)

    at_a_real_server(tls, speak_late)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05"])
def test_failed_handshake_does_not_delay_the_drain(said: bytes) -> None:
    async def fail(client: socket.socket) -> None:
        await until(lambda: Traffic.connections() == 1)
        Traffic.leave()
        client.sendall(said)
        client.close()
        await until(lambda: Traffic.connections() == 0)

    at_a_real_server(True, fail)


class Talk:
    """A WebSocket with an application that answers each message until the client disconnects."""

    def __init__(self, key: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self.seen: list[str] = []
        self._coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        authorization = [(b"authorization", f"Bearer {key}".encode())]
        self._scope = {"type": "websocket", "path": "/v1/realtime", "headers": authorization}

    async def run(self) -> None:
        await Traffic(self._application)(self._scope, self._coming.get, self._send)

    async def say(self) -> None:
        await self._coming.put({"type": "websocket.receive"})
        await asyncio.sleep(0.01)

    async def _application(self, _: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while "websocket.disconnect" not in self.seen:
            self.seen.append((await receive())["type"])
            await send({"type": "websocket.send"})

    async def _send(self, message: dict[str, Any]) -> None:
        if self.sent and self.sent[-1]["type"] == "websocket.close":
            raise RuntimeError("as uvicorn does")
        self.sent.append(message)
        if message["type"] == "websocket.close":
            await self._coming.put({"type": "websocket.disconnect"})


def test_websocket_is_closed_when_its_key_is_revoked() -> None:
    async def revoke() -> tuple[Talk, Talk]:
        first, second = Talk("first"), Talk("second")
        Traffic.take(Credentials((digest("first"), digest("second"))))
        tasks = [asyncio.create_task(talk.run()) for talk in (first, second)]
        await asyncio.sleep(0)
        await first.say()
        Traffic.take(Credentials((digest("second"),)))
        await asyncio.wait_for(tasks[0], 60)
        await second.say()
        assert not tasks[1].done()
        # Without keys the WebSocket needs none and stays open.
        Traffic.take(Credentials())
        await second.say()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return first, second

    first, second = asyncio.run(revoke())
    assert first.sent[1:] == [{"type": "websocket.send"}, {"type": "websocket.close", "code": POLICY_VIOLATION}]
    assert first.seen == ["websocket.receive", "websocket.disconnect"]
    assert second.seen == ["websocket.receive", "websocket.receive"]


def test_websocket_message_after_key_revocation_is_not_processed() -> None:
    async def revoke() -> Talk:
        talk = Talk("first")
        Traffic.take(Credentials((digest("first"),)))
        task = asyncio.create_task(talk.run())
        await asyncio.sleep(0)
        Traffic.take(Credentials((digest("second"),)))
        await talk.say()
        await asyncio.wait_for(task, 60)
        return talk

    assert asyncio.run(revoke()).seen == ["websocket.disconnect"]


def test_incomplete_request_is_dropped_when_its_key_is_revoked() -> None:
    seen: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])

    async def revoke() -> int:
        said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        Traffic.take(Credentials((digest("first"),)))
        asked = scope("POST", "/v1/completions") | {"headers": [(b"authorization", b"Bearer first")]}
        task = asyncio.create_task(Traffic(app)(asked, said.get, None))
        await said.put(PART)
        await asyncio.sleep(0.01)
        Traffic.take(Credentials((digest("second"),)))
        await said.put(REST)
        await asyncio.wait_for(task, 60)
        return Traffic.requests

    assert asyncio.run(revoke()) == 0
    assert seen == ["http.request", "http.disconnect"]


def test_stopping_server_does_not_open_its_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Traffic, "server", SimpleNamespace(should_exit=True, servers=[]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(Traffic.open(listener))
    assert Traffic.server.servers == []
