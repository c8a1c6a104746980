"""Reloads: their requests, the changes that they allow, and whether a change needs another server.

See also `protocol.reload_request`.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from hxp_enterprise_llm.engine import launch, sizes
from hxp_enterprise_llm.engine.model_files import weights_bytes
from hxp_enterprise_llm.protocol.credentials import Credentials, validate
from hxp_enterprise_llm.protocol.reload_request import KEYS, LONGEST_ANSWER, SOCKET, TAKEN, short_path
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding
from hxp_enterprise_llm.settings.keys import GIBIBYTE, memory_high
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import instance_file

log = logging.getLogger(__name__)

ROOT = 0
FILES = ("api_key_file", "tls_cert_file", "tls_key_file")
"""Settings whose files a running server can read again."""
REQUEST_SEC = 5.0
"""How long a request may take to arrive once a client has connected."""
PAUSE_SEC = 1.0
"""Pause before the next attempt if no connection can be accepted, for example without a free file descriptor."""


class Request:
    """A reload request of root, with the content of the files that the settings named then (`protocol.credentials`).

    `keys_only`: only the file of API keys is read again, and the settings stay as they are.
    """

    def __init__(self, channel: socket.socket, contents: dict[str, str], keys_only: bool = False) -> None:
        self._channel = channel
        self.contents, self.keys_only = contents, keys_only

    def answer(self, refused: str = "") -> None:
        """Answer that the request is accepted, or why it is refused. Only the first call sends an answer."""
        with self._channel, suppress(OSError):
            self._channel.send(refused.encode("utf-8", "replace")[:LONGEST_ANSWER] or TAKEN)


class Requests:
    """Receives root's requests on a socket in the run-time directory; other users are refused.

    `answer` is called with one request at a time, and has to answer it.
    """

    def __init__(self, run_time: Path, answer: Callable[[Request], Awaitable[None]]) -> None:
        self._answer = answer
        self._path = run_time / SOCKET
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start listening."""
        self._path.unlink(missing_ok=True)
        with short_path(str(self._path.parent)) as directory:
            self._socket.bind(f"{directory}/{SOCKET}")
        self._socket.listen()
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening; a waiting client is told that the service has stopped."""
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
                log.warning("Reload requests cannot be accepted at the moment: %s", error)
                await asyncio.sleep(PAUSE_SEC)
                continue
            try:
                _, user, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if user != ROOT:
                    raise PermissionError(f"user {user} requested a reload; only root may")
                channel.settimeout(REQUEST_SEC)
                request = Request(channel, *await asyncio.to_thread(_received, channel))
            except (OSError, ValueError) as error:
                log.warning("Ignoring a reload request: %s", error)
                channel.close()
                continue
            try:
                await self._answer(request)
            except Exception as error:
                # Any error: later requests, which may revoke a key, must still be processed.
                log.exception("A reload request failed")
                request.answer(f"the request failed: {error}")
            finally:
                # Has no effect if the request is answered already.
                request.answer("the service has stopped")


def _received(channel: socket.socket) -> tuple[dict[str, str], bool]:
    """Content of a request that `reload_request.ask` sent: files by credential, and whether only keys are reread."""
    what, descriptors, _, _ = socket.recv_fds(channel, len(SOCKET), 1)
    if not descriptors:
        raise ValueError("it contains no files")
    with os.fdopen(descriptors[0], encoding="utf-8") as stream:
        files = json.load(stream)
    if not isinstance(files, dict):
        raise ValueError("its content is not a mapping of files")
    return {str(name): str(content) for name, content in files.items()}, what == KEYS


class InEffect:
    """The settings with which an instance serves, and those of its next server.

    `reread` reads the settings again. `wanted` are the settings and the model of the next server. `due` is set while
    the settings of the last reload wait for their server.
    """

    def __init__(
        self,
        config: ServiceConfigSchema,
        model: str,
        credentials: Credentials,
        reread: Callable[[], tuple[ServiceConfigSchema, str]],
    ) -> None:
        self.config, self.model, self.credentials = config, model, credentials
        self.wanted, self.due = (config, model), asyncio.Event()
        self._reread = reread
        # The credentials of the last start or reload. A reload without any change starts another server; a reload after
        # `citadel-llm key revoke` has a change.
        self._reloaded = credentials

    async def take_in(self, request: Request) -> bool:
        """Put the keys and certificate of a request in effect at once; other settings wait for the next server.

        Returns whether another server is needed. Raises SettingsRefused, and then nothing changes.
        """
        if request.keys_only:
            self.credentials = self.credentials.with_keys_of(_keys(self.config, request.contents))
            return False
        config, model = await asyncio.to_thread(self._reread)
        check(self.config, config)
        given = validate(config, request.contents, running=True)
        another = given == self._reloaded or model != self.model or not same_server(self.config, config)
        if another:
            self.wanted = config, model
        self.config, self.credentials, self._reloaded = _with_files(self.config, config), given, given
        return another

    def turn(self) -> tuple[ServiceConfigSchema, str]:
        """Put the settings of the last reload in effect; returns the previous settings and model."""
        self.due.clear()
        before = self.config, self.model
        self.config, self.model = self.wanted
        return before

    def back(self, config: ServiceConfigSchema, model: str) -> None:
        """Put earlier settings in effect again; keys and certificate stay as they are."""
        self.config, self.model = _with_files(config, self.config), model


def _keys(config: ServiceConfigSchema, contents: dict[str, str]) -> Credentials:
    """The keys in a file of API keys, without a certificate. Raises SettingsRefused."""
    if not config.api_key_file:
        text = "API_KEY_FILE is new: run systemctl reload; until then requests need no key"
        raise SettingsRefused([SettingsFinding(instance_file(config.name), 0, text)])
    others = dict.fromkeys(("tls_cert_file", "tls_key_file", "hub_token_file"))
    return validate(config.model_copy(update=others), contents, running=True)


def _with_files(config: ServiceConfigSchema, other: ServiceConfigSchema) -> ServiceConfigSchema:
    """The settings `config` with the key and certificate files of `other`."""
    return config.model_copy(update={key: getattr(other, key) for key in FILES})


def check(old: ServiceConfigSchema, new: ServiceConfigSchema) -> None:
    """Raises SettingsRefused for a change that requires a restart: packet filter, ports, token of the hub."""
    for key in ("host", "port", "hub_token_file"):
        if getattr(new, key) != getattr(old, key):
            text = f"{key.upper()} changed, which requires a restart, not a reload"
            raise SettingsRefused([SettingsFinding(instance_file(old.name), 0, text)])
    if bool(new.gpu_devices) != bool(old.gpu_devices):
        # A unit without GPUs sees no devices (PrivateDevices=), and systemd decides that at the start.
        text = "GPU_DEVICES changed between the CPU and GPUs, which requires a restart, not a reload"
        raise SettingsRefused([SettingsFinding(instance_file(old.name), 0, text)])
    if launch.ports(new) is None and launch.ports(old) is not None:
        text = "VLLM_ARGS or a variable opens further ports, which requires a restart, not a reload"
        raise SettingsRefused([SettingsFinding(instance_file(old.name), 0, text)])


def same_server(old: ServiceConfigSchema, new: ServiceConfigSchema) -> bool:
    """Whether the running server can stay: the settings differ at most in key and certificate files."""
    files = dict.fromkeys(FILES)
    return old.model_copy(update=files) == new.model_copy(update=files)


def apart(old: ServiceConfigSchema, old_model: str, new: ServiceConfigSchema, new_model: str) -> str:
    """Why a reload does not start the new server beside the old one, "" if it does."""
    limit = min(old.memory_limit_gb, new.memory_limit_gb)
    tight = ""
    if new.reload_method != "restart" and not fits_beside(old, old_model, new, new_model, limit):
        tight = f"two servers do not fit in MEMORY_LIMIT_GB={limit:g}"
        if any(config.kv_cache_gb is None and not config.gpu_devices for config in (old, new)):
            tight += ", since without KV_CACHE_GB the cache takes all the memory left"
    if tight and new.reload_method == "beside":
        log.warning("RELOAD_METHOD=beside, although by estimate %s; the kernel may kill one of them", tight)
        return ""
    return tight or ("RELOAD_METHOD=restart" if new.reload_method == "restart" else "")


def fits_beside(
    old: ServiceConfigSchema, old_model: str, new: ServiceConfigSchema, new_model: str, limit_gb: float
) -> bool:
    """Whether a second server fits beside the first below the unit's memory limit (GiB)."""
    if old.gpu_devices or new.gpu_devices:
        # On a GPU its memory is the limit, and vLLM allocates its whole share of that at once.
        return False
    if not (Path(old_model).is_dir() and Path(new_model).is_dir()):
        # The size of a model on the hub is unknown, and so is that of a model whose files have been removed.
        return False
    with suppress(SettingsRefused, OSError):
        both = sum(
            weights_bytes(model) / GIBIBYTE + (sizes.cache_gb(config, model) or 0) + sizes.OVERHEAD_GB
            for config, model in ((old, old_model), (new, new_model))
        )
        return both <= memory_high(limit_gb) / GIBIBYTE
    return False
