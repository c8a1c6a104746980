"""What the middleware counts, with an application and a client that a test makes up."""

import asyncio
import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hxp_enterprise_llm.services.core.service_manager import pulse
from hxp_enterprise_llm.services.core.service_manager.server_process import LARGEST_MESSAGE
from hxp_enterprise_llm.services.core.service_manager.traffic import Traffic

PART, REST = {"type": "http.request", "more_body": True}, {"type": "http.request", "more_body": False}


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("requests", 0), ("sent", 0), ("_leaving", False), ("key_digests", ())):
        monkeypatch.setattr(Traffic, name, value)


def scope(method: str, path: str) -> dict[str, Any]:
    app = SimpleNamespace(state=SimpleNamespace(server=None))
    return {"type": "http", "method": method, "path": path, "headers": [], "app": app}


def counts(method: str, path: str, messages: Iterator[dict[str, Any]]) -> tuple[list[int], int]:
    """Requests in flight after each message of a client, and pieces sent in the end."""
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
    return seen, Traffic.sent


def test_a_request_is_work_once_all_of_it_is_there() -> None:
    assert counts("POST", "/v1/completions", iter([PART, PART, REST])) == ([0, 0, 1], 2)


def test_a_client_that_goes_in_the_middle_leaves_nothing() -> None:
    assert counts("POST", "/v1/completions", iter([PART, {"type": "http.disconnect"}])) == ([0, 0], 2)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
def test_probes_are_no_work_and_no_progress(path: str) -> None:
    assert counts("GET", path, iter([REST])) == ([0], 0)


def test_who_leaves_closes_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    async def application(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    monkeypatch.setattr(Traffic, "_leaving", True)
    asyncio.run(Traffic(application)(scope("GET", "/v1/models"), None, send))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"connection", b"close")]


@pytest.mark.parametrize("error", [ValueError("\N{PILE OF POO}" * 5000), ValueError("x" * 10_000)])
def test_no_error_is_too_long_to_be_told(error: Exception) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        pulse.tell_failure(near, error)
        assert json.loads(far.recv(LARGEST_MESSAGE))["failed"]["settings"] is True
