"""A server's reports of failures to the main process; no server runs."""

import asyncio
import json
import logging
import logging.config
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from hxp_enterprise_llm.worker import heartbeat


@pytest.fixture
def told() -> Iterator[socket.socket]:
    """The receiving end of a server's reports, which contain the exceptions that vLLM logs."""
    before = logging.getLogRecordFactory()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        heartbeat.tell_reasons(near)
        far.setblocking(False)
        yield far
    logging.setLogRecordFactory(before)


def log(name: str, error: Exception | None) -> None:
    logging.getLogger(name).error("It failed", exc_info=error)


def test_vllm_exceptions_are_reported_after_logging_is_reconfigured(told: socket.socket) -> None:
    new = {"vllm": {"handlers": [], "propagate": False}}
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": new})
    log("vllm.v1.engine.core", ValueError("Cannot find model module. 'X' is not registered"))
    log("vllm.v1.engine.core", RuntimeError("see above"))
    said = [json.loads(told.recv(4096))["failed"] for _ in range(2)]
    assert said == [
        {"text": "ValueError: Cannot find model module. 'X' is not registered", "final": True},
        {"text": "RuntimeError: see above", "final": False},
    ]


def test_other_log_records_are_not_reported(told: socket.socket) -> None:
    log("vllm.engine", None)
    log("another", ValueError("x"))
    with pytest.raises(BlockingIOError):
        told.recv(4096)


def test_an_error_of_the_heartbeat_reaches_the_main_process() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def run() -> None:
        beating = asyncio.create_task(heartbeat.beat(near, listener))
        await asyncio.to_thread(far.recv, 4096)
        # An invalid command.
        far.send(b"no JSON")
        await asyncio.wait_for(beating, 60)

    with near, far, socket.socket() as listener:
        with pytest.raises(json.JSONDecodeError):
            asyncio.run(run())
        far.setblocking(False)
        messages: list[Any] = []
        while not messages or "silent" not in messages[-1]:
            messages.append(json.loads(far.recv(4096)))
    assert messages[-1]["silent"].startswith("JSONDecodeError: Expecting value")
