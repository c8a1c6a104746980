"""Requests that an instance with keys answers."""

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.settings import api_keys
from hxp_enterprise_llm.worker.traffic import Traffic

from .served import served


def answer(path: str, authorization: bytes | None, kind: str = "http", method: str = "GET") -> dict[str, Any]:
    """The first message of the answer to a request, with an application that accepts every client."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization)]
    scope: dict[str, Any] = {"type": kind, "path": path, "headers": headers}
    if kind == "http":
        scope["method"] = method
    scope["app"] = type("App", (), {"state": type("State", (), {"server": None, "engine_client": None})})
    asyncio.run(Traffic(application)(scope, None, send))
    return sent[0]


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Traffic, "key_digests", (api_keys.digest("first"), api_keys.digest("second")))
    monkeypatch.setattr(Traffic, "metrics_digests", (api_keys.digest("for-metrics"),))


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/tokenize", "/invocations", "/docs", "/health/", "/Health"]
)
@pytest.mark.parametrize(
    "given", [None, b"", b"Bearer", b"Bearer ", b"Bearer third", b"Basic first", b"first", b"\xff"]
)
def test_every_path_requires_a_key(locked: None, path: str, given: bytes | None) -> None:
    assert answer(path, given)["status"] == 401


@pytest.mark.parametrize("given", [b"Bearer first", b"bearer second", b"Bearer  first "])
def test_every_configured_key_is_accepted(locked: None, given: bytes) -> None:
    assert answer("/metrics", given)["status"] == 200


def test_websocket_without_a_key_is_refused_before_it_opens(locked: None) -> None:
    refused = answer("/v1/realtime", None, "websocket")
    assert (refused["type"], refused["status"]) == ("websocket.http.response.start", 401)


def test_health_and_instances_without_keys_require_no_key(locked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer("/health", None)["status"] == 200
    monkeypatch.setattr(Traffic, "key_digests", ())
    assert answer("/metrics", None)["status"] == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_metrics_key_is_valid_for_metrics(locked: None, method: str) -> None:
    assert answer("/metrics", b"Bearer for-metrics", method=method)["status"] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("GET", "/metrics/"),
        ("GET", "/metrics/v1/models"),
        ("GET", "/metricsx"),
        ("GET", "//metrics"),
        ("GET", "/v1/metrics"),
        ("GET", "/Metrics"),
        ("POST", "/metrics"),
        ("OPTIONS", "/metrics"),
        ("get", "/metrics"),
    ],
)
def test_metrics_key_is_refused_elsewhere(locked: None, method: str, path: str) -> None:
    assert answer(path, b"Bearer for-metrics", method=method)["status"] == 401


def test_metrics_key_opens_no_websocket(locked: None) -> None:
    for path in ("/metrics", "/v1/realtime"):
        assert answer(path, b"Bearer for-metrics", "websocket")["status"] == 401


def test_metrics_key_stays_restricted_after_its_use(locked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads its credentials from JSON, where a tuple becomes a list, which could be extended."""
    monkeypatch.setattr(Traffic, "taken", 0)
    sent = json.dumps(dataclasses.asdict(Credentials(("a",), metrics_digests=(api_keys.digest("for-metrics"),))))
    Traffic.take(Credentials(**json.loads(sent)))
    for _ in range(2):
        assert answer("/metrics", b"Bearer for-metrics")["status"] == 200
        assert answer("/v1/models", b"Bearer for-metrics")["status"] == 401


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        (b"GET /metrics", b"", b"200"),
        (b"HEAD /metrics", b"", b"200"),
        (b"GET /metrics?name=x", b"", b"200"),
        (b"GET /v1/models", b"", b"401"),
        (b"GET /v1/../metrics", b"", b"401"),
        (b"GET /metrics/../v1/models", b"", b"401"),
        (b"GET http://x/metrics", b"", b"401"),
        (b"GET /metrics", b"Content-Length: 2\r\n", b"401"),
        (b"POST /metrics", b"Content-Length: 0\r\n", b"401"),
        (b"GET /metrics", b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
         b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"401"),
    ],
)  # fmt: skip
def test_metrics_key_at_a_real_server(request_line: bytes, fields: bytes, status: bytes) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["type"], scope["path"]) == ("http", "/metrics")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def ask() -> bytes:
        credentials = Credentials((api_keys.digest("first"),), metrics_digests=(api_keys.digest("for-metrics"),))
        async with served(application, credentials=credentials) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer for-metrics\r\n"
            writer.write(request_line + head + fields + b"\r\n")
            async with asyncio.timeout(60):
                line = await reader.readline()
            writer.close()
            return line

    assert asyncio.run(ask()).split()[1] == status
