"""What a vLLM server tells the main process while it runs: that its event loop turns, and whether work gets done.

Messages are JSON on a SOCK_SEQPACKET socket, one a second: `{"in_flight": requests, "progress": [figures]}`. Whatever
else the server has to say on its way down is `{"failed": {"text": sentence, "settings": bool}}`.
This half runs in vLLM's processes; `hang` judges what arrives.
"""

import asyncio
import json
import logging
import socket
from contextlib import suppress
from typing import Any

from prometheus_client import REGISTRY

BEAT_SEC = 1.0
TEXT_LENGTH = 500
"""How much of an error is told (characters)."""
FIGURES = (
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total",
    # A long prompt is read in pieces that yield no token; each takes cache.
    "vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting",
)  # fmt: skip
"""Metrics of vLLM of which at least one moves while a request is worked on (vllm/v1/metrics/loggers.py)."""


class InFlight:
    """ASGI middleware that counts the requests that a model has to work for, and what has been sent of answers.

    vLLM's own gauge does not do: it shows a request once the engine has taken it up, which a hung one never does.
    """

    requests = 0
    sent = 0

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            InFlight.sent += 1
            await send(message)

        InFlight.requests += 1
        try:
            await self._app(scope, receive, counted)
        finally:
            InFlight.requests -= 1


class _Reasons(logging.Handler):
    """Tells the main process the exceptions that vLLM logs; the first one is why a start failed."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(logging.ERROR)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the exception of a record, if it has one."""
        if record.exc_info and record.exc_info[1]:
            tell_failure(self._channel, record.exc_info[1])


def tell_reasons(channel: socket.socket) -> None:
    """From now on tell the exceptions that vLLM logs, also in processes that are forked from this one."""
    logging.getLogger("vllm").addHandler(_Reasons(channel))


def tell_failure(channel: socket.socket, error: BaseException) -> None:
    """Tell why this process ends. A ValueError is what vLLM raises for settings that do not go together."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:TEXT_LENGTH]
    _send(channel, {"failed": {"text": text, "settings": isinstance(error, ValueError)}})


async def beat(channel: socket.socket) -> None:
    """Send a message a second, for ever."""
    figures = REGISTRY.restricted_registry(FIGURES)
    while True:
        # Without --disable-log-stats there are figures; with it, what has been sent is all there is to go by.
        progress = [sample.value for metric in figures.collect() for sample in metric.samples if sample.name in FIGURES]
        _send(channel, {"in_flight": InFlight.requests, "progress": [InFlight.sent, *progress]})
        await asyncio.sleep(BEAT_SEC)


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    # The main process may be busy or gone: the engine must not wait for it.
    with suppress(OSError):
        channel.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
