"""Requests that an instance with keys answers."""

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.settings import api_keys
from hxp_enterprise_llm.worker.traffic import Traffic


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
