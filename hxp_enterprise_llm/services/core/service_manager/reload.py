"""What a reload can change, what it takes, and how systemctl learns of it; `reload_command` is the other half."""

import asyncio
import json
import logging
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hxp_enterprise_llm.reload_command import LONGEST_ANSWER, SOCKET, TAKEN, short_path
from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.services.core.service_manager import engine
from hxp_enterprise_llm.utils.errors import SettingsRefused
from hxp_enterprise_llm.utils.settings import instance_file
from hxp_enterprise_llm.utils.settings_file import Fault
from hxp_enterprise_llm.utils.settings_keys import GIBIBYTE, memory_high

log = logging.getLogger(__name__)

ROOT = 0
REQUEST_SEC = 5.0
"""How long what is asked may take to arrive, once somebody has connected."""


class Request:
    """A reload that root has asked for, with what is in the files that the settings named then (see `credentials`)."""

    def __init__(self, channel: socket.socket, contents: dict[str, str]) -> None:
        self._channel = channel
        self.contents = contents

    def answer(self, refused: str = "") -> None:
        """Tell that it is taken up, or why it is not."""
        with self._channel, suppress(OSError):
            self._channel.send(refused.encode("utf-8", "replace")[:LONGEST_ANSWER] or TAKEN)


class Requests:
    """Where reloads are asked for: a socket in the run-time directory, on which nobody but root is heard.

    `due` is set while one waits.
    """

    def __init__(self, run_time: Path) -> None:
        self.due = asyncio.Event()
        self._waiting: list[Request] = []
        self._path = run_time / SOCKET
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        self._path.unlink(missing_ok=True)
        with short_path(str(self._path.parent)) as directory:
            self._socket.bind(f"{directory}/{SOCKET}")
        self._socket.listen()
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and tell who waits."""
        if self._accepting:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        for request in self._waiting:
            request.answer("the service has stopped")
        self._path.unlink(missing_ok=True)
        self._socket.close()

    def take(self) -> Request:
        """The one that is due. Raises IndexError if none is."""
        self.due.clear()
        return self._waiting.pop()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            channel, _ = await loop.sock_accept(self._socket)
            try:
                _, user, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if user != ROOT:
                    raise PermissionError(f"a process of the user {user} asked for a reload; only root may")
                channel.settimeout(REQUEST_SEC)
                request = Request(channel, await asyncio.to_thread(_received, channel))
            except (OSError, ValueError) as error:
                log.warning("A request for a reload is not heard: %s", error)
                channel.close()
                continue
            while self._waiting:
                self._waiting.pop().answer("another reload was asked for before this one was taken up")
            self._waiting.append(request)
            self.due.set()


def _received(channel: socket.socket) -> dict[str, str]:
    """What `reload_command.ask` sends."""
    _, descriptors, _, _ = socket.recv_fds(channel, len(SOCKET), 1)
    if not descriptors:
        raise ValueError("it brings no files")
    with os.fdopen(descriptors[0], encoding="utf-8") as stream:
        return {str(name): str(content) for name, content in json.load(stream).items()}


def check(old: ServiceConfigSchema, new: ServiceConfigSchema) -> None:
    """Raises SettingsRefused for a change of what belongs to the start: packet filter, ports, token of the hub."""
    for key in ("host", "port", "hub_token_file"):
        if getattr(new, key) != getattr(old, key):
            text = f"{key.upper()} changed, which takes a restart, not a reload"
            raise SettingsRefused([Fault(instance_file(old.name), 0, text)])
    if engine.ports(new) is None and engine.ports(old) is not None:
        text = "VLLM_ARGS or a variable asks for further ports, which takes a restart, not a reload"
        raise SettingsRefused([Fault(instance_file(old.name), 0, text)])


def same_server(old: ServiceConfigSchema, new: ServiceConfigSchema) -> bool:
    """Whether the server that runs will do: nothing but the files of its keys and of its certificate differ."""
    files = dict.fromkeys(("api_key_file", "tls_cert_file", "tls_key_file"))
    return old.model_copy(update=files) == new.model_copy(update=files)


def beside(old: ServiceConfigSchema, old_model: str, new: ServiceConfigSchema, new_model: str) -> bool:
    """Whether a reload starts the new server beside the old one."""
    if new.reload_method != "auto":
        return new.reload_method == "beside"
    limit = min(old.memory_limit_gb, new.memory_limit_gb)
    if fits_beside(old, old_model, new, new_model, limit):
        return True
    log.info("Two servers do not fit in MEMORY_LIMIT_GB=%g; the old one ends before the new one starts", limit)
    return False


def fits_beside(
    old: ServiceConfigSchema, old_model: str, new: ServiceConfigSchema, new_model: str, limit_gb: float
) -> bool:
    """Whether a second server fits beside the first below the limit that the unit runs with (GiB)."""
    if old.gpu_devices or new.gpu_devices:
        # The memory that counts is the GPU's, of which vLLM takes what it is given at once.
        return False
    # The old model's files may have gone meanwhile.
    with suppress(SettingsRefused):
        both = sum(
            engine.weights_bytes(model) / GIBIBYTE + (engine.cache_gb(config, model) or 0) + engine.OVERHEAD_GB
            for config, model in ((old, old_model), (new, new_model))
        )
        return both <= memory_high(limit_gb) / GIBIBYTE
    return False
