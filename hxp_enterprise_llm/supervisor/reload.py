"""What a reload can change, what it takes, and how systemctl learns of it; `reload_command` is the other half."""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from hxp_enterprise_llm.engine import launch, sizes
from hxp_enterprise_llm.engine.model_files import weights_bytes
from hxp_enterprise_llm.protocol.credentials import Credentials, judge
from hxp_enterprise_llm.protocol.reload_request import KEYS, LONGEST_ANSWER, SOCKET, TAKEN, short_path
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.grammar import Fault
from hxp_enterprise_llm.settings.keys import GIBIBYTE, memory_high
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import instance_file

log = logging.getLogger(__name__)

ROOT = 0
FILES = ("api_key_file", "tls_cert_file", "tls_key_file")
"""What a server that runs can take in."""
REQUEST_SEC = 5.0
"""How long what is asked may take to arrive, once somebody has connected."""
PAUSE_SEC = 1.0
"""Before the next look if nobody can be let in, for want of file descriptors say."""


class Request:
    """What root has asked for, with what is in the files that the settings named then (see `credentials`).

    `keys_only`: of a file of keys, and the settings stay as they are.
    """

    def __init__(self, channel: socket.socket, contents: dict[str, str], keys_only: bool = False) -> None:
        self._channel = channel
        self.contents, self.keys_only = contents, keys_only

    def answer(self, refused: str = "") -> None:
        """Tell that it is taken up, or why it is not; nothing the second time."""
        with self._channel, suppress(OSError):
            self._channel.send(refused.encode("utf-8", "replace")[:LONGEST_ANSWER] or TAKEN)


class Requests:
    """Where root asks for reloads: a socket in the run-time directory, on which nobody but root is heard.

    `answer` is called with one after the other, and answers it.
    """

    def __init__(self, run_time: Path, answer: Callable[[Request], Awaitable[None]]) -> None:
        self._answer = answer
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
        self._path.unlink(missing_ok=True)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                channel, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                log.warning("Nobody can ask for a reload now: %s", error)
                await asyncio.sleep(PAUSE_SEC)
                continue
            try:
                _, user, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if user != ROOT:
                    raise PermissionError(f"a process of the user {user} asked for a reload; only root may")
                channel.settimeout(REQUEST_SEC)
                request = Request(channel, *await asyncio.to_thread(_received, channel))
            except (OSError, ValueError) as error:
                log.warning("A request for a reload is not heard: %s", error)
                channel.close()
                continue
            try:
                await self._answer(request)
            except Exception as error:
                # Also one that nobody foresaw: a later key has to be revoked all the same.
                log.exception("A request for a reload cannot be taken up")
                request.answer(f"it cannot be taken up: {error}")
            finally:
                # Who has an answer already hears no second one.
                request.answer("the service has stopped")


def _received(channel: socket.socket) -> tuple[dict[str, str], bool]:
    """What `reload_command.ask` sends: the files, and whether keys are all that it is about."""
    what, descriptors, _, _ = socket.recv_fds(channel, len(SOCKET), 1)
    if not descriptors:
        raise ValueError("it brings no files")
    with os.fdopen(descriptors[0], encoding="utf-8") as stream:
        files = json.load(stream)
    if not isinstance(files, dict):
        raise ValueError("what it brings is no list of files by their names")
    return {str(name): str(content) for name, content in files.items()}, what == KEYS


class InEffect:
    """What an instance serves with, and what it shall serve with once another server's turn has come.

    `reread` gives the settings anew. `due` is to be set while what the last reload found waits for its server.
    """

    def __init__(
        self,
        config: ServiceConfigSchema,
        model: str,
        credentials: Credentials,
        reread: Callable[[], tuple[ServiceConfigSchema, str]],
    ) -> None:
        self.config, self.model, self.credentials = config, model, credentials
        self._wanted, self.due = (config, model), asyncio.Event()
        self._reread = reread
        # Those of the last start or reload. `citadel-llm key revoke` and then a reload are not a reload without any
        # change, which is one for another server.
        self._reloaded = credentials

    async def take_in(self, request: Request) -> bool:
        """Take in what a request brings: keys and certificate at once, the rest when it is its turn.

        Whether it takes another server. Raises SettingsRefused, and all stays as it was.
        """
        if request.keys_only:
            self.credentials = replace(self.credentials, key_digests=_keys(self.config, request.contents))
            return False
        config, model = await asyncio.to_thread(self._reread)
        check(self.config, config)
        given = judge(config, request.contents, running=True)
        another = given == self._reloaded or model != self.model or not same_server(self.config, config)
        if another:
            self._wanted = config, model
        self.config, self.credentials, self._reloaded = _with_files(self.config, config), given, given
        return another

    def turn(self) -> tuple[ServiceConfigSchema, str]:
        """From now on what the last reload wanted is in effect; settings and model that were before."""
        self.due.clear()
        before = self.config, self.model
        self.config, self.model = self._wanted
        return before

    def back(self, config: ServiceConfigSchema, model: str) -> None:
        """From now on these are in effect again, with the keys and the certificate as they are."""
        self.config, self.model = _with_files(config, self.config), model


def _keys(config: ServiceConfigSchema, contents: dict[str, str]) -> tuple[str, ...]:
    """Digests of the keys in a file of keys, whatever the certificate's files hold now. Raises SettingsRefused."""
    if not config.api_key_file:
        text = "API_KEY_FILE is new: anybody may ask until a reload"
        raise SettingsRefused([Fault(instance_file(config.name), 0, text)])
    others = dict.fromkeys(("tls_cert_file", "tls_key_file", "hub_token_file"))
    return judge(config.model_copy(update=others), contents, running=True).key_digests


def _with_files(config: ServiceConfigSchema, other: ServiceConfigSchema) -> ServiceConfigSchema:
    """Settings with the files of keys and certificate that others name."""
    return config.model_copy(update={key: getattr(other, key) for key in FILES})


def check(old: ServiceConfigSchema, new: ServiceConfigSchema) -> None:
    """Raises SettingsRefused for a change of what belongs to the start: packet filter, ports, token of the hub."""
    for key in ("host", "port", "hub_token_file"):
        if getattr(new, key) != getattr(old, key):
            text = f"{key.upper()} changed, which takes a restart, not a reload"
            raise SettingsRefused([Fault(instance_file(old.name), 0, text)])
    if bool(new.gpu_devices) != bool(old.gpu_devices):
        # A unit without GPUs sees no devices (PrivateDevices=), and systemd decides that at the start.
        text = "GPU_DEVICES changed between the CPU and GPUs, which takes a restart, not a reload"
        raise SettingsRefused([Fault(instance_file(old.name), 0, text)])
    if launch.ports(new) is None and launch.ports(old) is not None:
        text = "VLLM_ARGS or a variable asks for further ports, which takes a restart, not a reload"
        raise SettingsRefused([Fault(instance_file(old.name), 0, text)])


def same_server(old: ServiceConfigSchema, new: ServiceConfigSchema) -> bool:
    """Whether the server that runs will do: nothing but the files of its keys and of its certificate differ."""
    files = dict.fromkeys(FILES)
    return old.model_copy(update=files) == new.model_copy(update=files)


def apart(old: ServiceConfigSchema, old_model: str, new: ServiceConfigSchema, new_model: str) -> str:
    """Why a reload does not start the new server beside the old one, empty if it does."""
    limit = min(old.memory_limit_gb, new.memory_limit_gb)
    tight = ""
    if new.reload_method != "restart" and not fits_beside(old, old_model, new, new_model, limit):
        tight = f"two servers do not fit in MEMORY_LIMIT_GB={limit:g}"
        if any(config.kv_cache_gb is None and not config.gpu_devices for config in (old, new)):
            tight += ", for without KV_CACHE_GB the cache takes what there is"
    if tight and new.reload_method == "beside":
        log.warning("RELOAD_METHOD=beside, though by estimate %s: the kernel may end either", tight)
        return ""
    return tight or ("RELOAD_METHOD=restart" if new.reload_method == "restart" else "")


def fits_beside(
    old: ServiceConfigSchema, old_model: str, new: ServiceConfigSchema, new_model: str, limit_gb: float
) -> bool:
    """Whether a second server fits beside the first below the limit that the unit runs with (GiB)."""
    if old.gpu_devices or new.gpu_devices:
        # The memory that counts is the GPU's, of which vLLM takes what it is given at once.
        return False
    if not (Path(old_model).is_dir() and Path(new_model).is_dir()):
        # How much a model of the hub takes is not known, nor of one whose files have gone meanwhile.
        return False
    with suppress(SettingsRefused, OSError):
        both = sum(
            weights_bytes(model) / GIBIBYTE + (sizes.cache_gb(config, model) or 0) + sizes.OVERHEAD_GB
            for config, model in ((old, old_model), (new, new_model))
        )
        return both <= memory_high(limit_gb) / GIBIBYTE
    return False
