"""Messages between a vLLM server and the main process while the server runs.

Messages are JSON on a SOCK_SEQPACKET socket. The server sends a heartbeat every second,
`{"in_flight": requests, "waiting": requests, "connections": clients, "open": bool, "taken": times,
"progress": [figures]}`. `in_flight` counts the requests that are not answered completely, `waiting` those of them that
wait for the engine. When the server fails it sends `{"failed": {"text": sentence, "final": bool}}`; when only its
heartbeats end, `{"silent": sentence}`. The main process sends `"open"`, `"leave"`, and credentials: their JSON in
messages `{"part": text}`, then `"take"`.
This half runs in vLLM's processes; `supervisor.server_process` and `supervisor.hang` are the other half.
"""

import asyncio
import json
import logging
import select
import socket
from contextlib import suppress
from typing import Any

from prometheus_client import REGISTRY

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import LARGEST_COMMAND_BYTES
from hxp_enterprise_llm.worker import failures
from hxp_enterprise_llm.worker.traffic import Traffic

BEAT_SEC = 1.0
TELL_SEC = 1.0
"""How long a message about a failure waits for room in the main process's queue."""
FIGURES = (
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
    # A long prompt is processed in pieces that yield no token; each piece uses cache.
    "vllm:kv_cache_usage_perc",
)  # fmt: skip
"""Metrics of vLLM, at least one of which changes while the engine works on a request (vllm/v1/metrics/loggers.py)."""


def tell_reasons(channel: socket.socket, *, gpu: bool = False) -> None:
    """From now on send the main process each exception that vLLM logs, also from processes forked from this one.

    The first exception is the reason of a failed start. `gpu`: the model computes on a GPU.
    This sets a record factory, not a handler: vLLM's engine process configures logging again and drops handlers.
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
            tell_failure(channel, record.exc_info[1], gpu=gpu)
        return record

    logging.setLogRecordFactory(tell)


def tell_failure(channel: socket.socket, error: BaseException, *, gpu: bool = False) -> None:
    """Send the reason why this process ends, and whether it is an error in the settings."""
    tell_end(channel, failures.description(error), failures.is_final(error, gpu=gpu))


def tell_end(channel: socket.socket, text: str, final: bool) -> None:
    """Send the reason why this process ends (ASCII); `final` if no start with the same settings can succeed."""
    _send(channel, {"failed": {"text": text, "final": final}}, TELL_SEC)


async def beat(channel: socket.socket, listener: socket.socket) -> None:
    """Send a heartbeat every second and carry out the main process's commands with `listener`; never returns.

    On an error of its own, it sends the error to the main process and raises it: the engine may still be healthy.
    """
    try:
        await _beat(channel, listener)
    except Exception as error:
        _send(channel, {"silent": failures.description(error)}, TELL_SEC)
        raise


async def _beat(channel: socket.socket, listener: socket.socket) -> None:
    figures = REGISTRY.restricted_registry(FIGURES)
    heard = asyncio.Event()
    parts: list[str] = []
    loop = asyncio.get_running_loop()
    loop.add_reader(channel.fileno(), heard.set)
    try:
        while True:
            samples = (sample for metric in figures.collect() for sample in metric.samples if sample.name in FIGURES)
            engine = Traffic.engine
            # With --disable-log-stats there are no samples. A request that arrives or leaves is no progress.
            progress = [sample.value for sample in samples] or [engine.outputs if engine else 0]
            message = {"in_flight": Traffic.requests, "waiting": engine.waiting() if engine else 0}
            message |= {"connections": Traffic.connections()}
            message |= {"open": Traffic.is_open, "taken": Traffic.taken}
            _send(channel, {**message, "progress": progress})
            with suppress(TimeoutError):
                await asyncio.wait_for(heard.wait(), BEAT_SEC)
            if heard.is_set():
                heard.clear()
                await _obey(channel, listener, parts)
    finally:
        loop.remove_reader(channel.fileno())


async def _obey(channel: socket.socket, listener: socket.socket, parts: list[str]) -> None:
    """Carry out the next command, if there is one; `parts` are those of credentials that have come so far."""
    try:
        text = channel.recv(LARGEST_COMMAND_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    if not text:
        # The main process has ended; systemd ends this process.
        asyncio.get_running_loop().remove_reader(channel.fileno())
        return
    command = json.loads(text)
    if isinstance(command, dict):
        parts.append(command["part"])
    elif command == "take":
        given = json.loads("".join(parts))
        parts.clear()
        Traffic.take(Credentials(**given))
        if Traffic.is_open:
            await Traffic.open(listener)
    elif command == "open":
        await Traffic.open(listener)
    else:
        Traffic.leave()


def _send(channel: socket.socket, message: dict[str, Any], within_sec: float = 0) -> None:
    """Send a message; drop it if the main process is gone, or has no room for it within `within_sec` seconds."""
    with suppress(OSError, ValueError):
        if within_sec:
            select.select([], [channel], [], within_sec)
        channel.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
