"""What a vLLM server and the main process tell each other while the server runs.

Messages are JSON on a SOCK_SEQPACKET socket. The server sends one a second,
`{"in_flight": requests, "connections": clients, "open": bool, "taken": times, "progress": [figures]}`, and on
its way down `{"failed": {"text": sentence, "settings": bool}}`; the main process sends `"open"`, `"leave"`, and with
the descriptor of a file in memory that holds credentials `"take"`.
This half runs in vLLM's processes; `hang` judges what arrives.
"""

import asyncio
import json
import logging
import os
import socket
from contextlib import suppress
from typing import Any

from prometheus_client import REGISTRY
from pydantic import ValidationError

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.worker.traffic import Traffic

BEAT_SEC = 1.0
TEXT_BYTES = 1000
"""How much of an error is told; a message must not be longer than the main process reads at once."""
LONGEST_WORD_BYTES = 16
FIGURES = (
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
    # A long prompt is read in pieces that yield no token; each takes cache.
    "vllm:kv_cache_usage_perc",
)  # fmt: skip
"""Metrics of vLLM of which at least one moves while a request is worked on (vllm/v1/metrics/loggers.py)."""


def tell_reasons(channel: socket.socket) -> None:
    """From now on tell the exceptions that vLLM logs, also in processes that are forked from this one; the first one is
    why a start failed.

    Not by a handler: vLLM's engine process sets up its logging anew, without those of before.
    """
    make = logging.getLogRecordFactory()

    def tell(*words: Any, **named: Any) -> logging.LogRecord:
        record = make(*words, **named)
        if (
            record.levelno >= logging.ERROR
            and record.exc_info
            and record.exc_info[1]
            and record.name.startswith("vllm")
        ):
            tell_failure(channel, record.exc_info[1])
        return record

    logging.setLogRecordFactory(tell)


def tell_failure(channel: socket.socket, error: BaseException) -> None:
    """Tell why this process ends. A ValueError is what vLLM raises for settings that do not go together."""
    # pydantic's own text repeats the input and an address; vLLM's words are in the messages.
    said = "; ".join(fault["msg"] for fault in error.errors()) if isinstance(error, ValidationError) else str(error)
    text = " ".join(f"{type(error).__name__}: {said}".split()).encode("ascii", "replace")[:TEXT_BYTES].decode()
    _send(channel, {"failed": {"text": text, "settings": isinstance(error, ValueError)}})


async def beat(channel: socket.socket, listener: socket.socket) -> None:
    """Send a message a second, for ever, and do what the main process says with `listener`."""
    figures = REGISTRY.restricted_registry(FIGURES)
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(channel.fileno(), heard.set)
    try:
        while True:
            samples = (sample for metric in figures.collect() for sample in metric.samples if sample.name in FIGURES)
            # With --disable-log-stats there are no figures; what is sent is less sure, an answer to nobody counts too.
            progress = [sample.value for sample in samples] or [Traffic.sent]
            message = {"in_flight": Traffic.requests, "connections": Traffic.connections()}
            message |= {"open": Traffic.is_open, "taken": Traffic.taken}
            _send(channel, {**message, "progress": progress})
            with suppress(TimeoutError):
                await asyncio.wait_for(heard.wait(), BEAT_SEC)
            if heard.is_set():
                heard.clear()
                await _obey(channel, listener)
    finally:
        loop.remove_reader(channel.fileno())


async def _obey(channel: socket.socket, listener: socket.socket) -> None:
    try:
        words, descriptors, _, _ = socket.recv_fds(channel, LONGEST_WORD_BYTES, 1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    if not words:
        # The main process is gone; systemd ends this one.
        asyncio.get_running_loop().remove_reader(channel.fileno())
    elif json.loads(words) == "take":
        with os.fdopen(descriptors[0], encoding="utf-8") as file:
            given = json.load(file)
        Traffic.take(Credentials(**given))
        if Traffic.is_open:
            await Traffic.open(listener)
    elif json.loads(words) == "open":
        await Traffic.open(listener)
    else:
        Traffic.leave()


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    # The main process may be busy or gone: the engine must not wait for it.
    with suppress(OSError):
        channel.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
