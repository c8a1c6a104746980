"""What a server tells of its failures, with no server behind it."""

import json
import logging
import logging.config
import socket
from collections.abc import Iterator

import pytest

from hxp_enterprise_llm.worker import heartbeat


@pytest.fixture
def told() -> Iterator[socket.socket]:
    """The far end of what a server tells, which tells the exceptions that vLLM logs."""
    before = logging.getLogRecordFactory()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        heartbeat.tell_reasons(near)
        far.setblocking(False)
        yield far
    logging.setLogRecordFactory(before)


def log(name: str, error: Exception | None) -> None:
    logging.getLogger(name).error("It failed", exc_info=error)


def test_what_vllm_logs_is_told_also_after_it_has_set_up_its_logging_anew(told: socket.socket) -> None:
    new = {"vllm": {"handlers": [], "propagate": False}}
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": new})
    log("vllm.v1.engine.core", ValueError("KV cache is too small"))
    log("vllm.v1.engine.core", RuntimeError("see above"))
    said = [json.loads(told.recv(4096))["failed"] for _ in range(2)]
    assert said == [
        {"text": "ValueError: KV cache is too small", "settings": True},
        {"text": "RuntimeError: see above", "settings": False},
    ]


def test_what_is_no_exception_of_vllms_is_not_told(told: socket.socket) -> None:
    log("vllm.engine", None)
    log("another", ValueError("x"))
    with pytest.raises(BlockingIOError):
        told.recv(4096)
