"""One instance from start to stop: phases for systemd, readiness, recovery, reload and drain.

The main process imports neither vLLM nor torch. It owns the listening socket, so that connections wait instead of
being refused while an engine is replaced, and it starts servers from a fork server that has imported vLLM once.
"""

import asyncio
import errno
import logging
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.services.core.service_manager import engine
from hxp_enterprise_llm.services.core.service_manager.memory_events import oom_kills
from hxp_enterprise_llm.services.core.service_manager.notify import Notifier
from hxp_enterprise_llm.services.core.service_manager.readiness import NotAnswered, base_url, first_answer
from hxp_enterprise_llm.services.core.service_manager.server_process import ServerProcess
from hxp_enterprise_llm.utils.errors import (
    AddressMissing,
    CitadelError,
    EngineDied,
    EngineHung,
    PortTaken,
    SettingsRefused,
)
from hxp_enterprise_llm.utils.settings import instance_file
from hxp_enterprise_llm.utils.settings_file import Fault

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_SEC = 2.0
PROGRESS_BYTES = 1 << 20
"""What memory or reads must grow by between two looks for loading to count as progressing."""
STALL_MARGIN_SEC = 10.0
"""How much longer systemd waits than the main process, which can say what it was that stood still."""
DRAIN_GRACE_SEC = 5.0
"""What the server gets beyond its drain to end; systemd waits longer, see STOP_MARGIN_SEC of the generator."""
RECOVERIES, RECOVERY_WINDOW_SEC = 3, 300.0
"""So many engines may die within the window before the main process gives up and leaves the restart to systemd."""
BACKLOG = 2048
"""Connections that wait while no server accepts; the kernel caps it at net.core.somaxconn."""
USAGE_STATUS = 2
"""What argparse exits with; vLLM's parser reads VLLM_ARGS in the server process."""


def listen(config: ServiceConfigSchema) -> socket.socket:
    """Bind the instance's address. Raises PortTaken, or AddressMissing if HOST is not an address of this host."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"PORT={config.port} on {config.host} is taken by another process; "
                f"`ss -ltnp 'sport = :{config.port}'` names it. Stop it or choose another PORT"
            ) from None
        # Retried by systemd: at boot the address may come later.
        raise AddressMissing(
            f"HOST={config.host} cannot be listened on: {error.strerror}; write an address of this host"
        ) from None
    return listener


class Supervisor:
    """Runs one instance.

    `reread` gives the settings anew when a reload asks for them; in `run_time`, the unit's run-time directory, its
    ExecReload= leaves and expects marks.
    """

    def __init__(
        self,
        config: ServiceConfigSchema,
        model: str,
        api_keys: Sequence[str],
        notifier: Notifier,
        *,
        reread: Callable[[], tuple[ServiceConfigSchema, str]],
        run_time: Path,
    ) -> None:
        self._config, self._model, self._api_keys = config, model, api_keys
        self._notifier, self._reread, self._run_time = notifier, reread, run_time
        # What to go back to if the settings of a reload turn out to start no server.
        self._previous: tuple[ServiceConfigSchema, str] | None = None
        self._stop, self._reload = asyncio.Event(), asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=RECOVERIES)
        self._oom_kills = oom_kills()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CitadelError with the reason of any other end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        listener = listen(self._config)
        try:
            while not self._stop.is_set():
                try:
                    await self._serve(listener)
                except CitadelError as error:
                    if self._previous is None:
                        raise
                    log.error("%s; going back to the settings before the reload", error)
                    (self._config, self._model), self._previous = self._previous, None
        finally:
            listener.close()

    async def _serve(self, listener: socket.socket) -> None:
        """Run one server from its start to its end, which may be a reason to start the next one."""
        config = self._config
        begin = time.monotonic()
        server = ServerProcess(
            config.start_method,
            engine.arguments(config, self._model),
            engine.environment(config),
            listener,
            self._api_keys,
        )
        try:
            if not await self._start(server):
                return
            self._previous = None
            took = time.monotonic() - begin
            self._say(f"Ready: {config.api_name} on {base_url(config)}, started in {took:.1f} s", READY=1)
            server.watch_engines()
            while True:
                reason = await self._until_something_happens(server)
                if reason:
                    self._recover(reason)
                    return
                if self._stop.is_set():
                    listener.close()
                    await self._drain(server)
                    return
                if await self._reread_settings():
                    await server.drain(config.drain_timeout_sec + DRAIN_GRACE_SEC)
                    return
        finally:
            server.kill()

    async def _start(self, server: ServerProcess) -> bool:
        """Bring the server up to its first answer; False if a stop came first. Raises EngineDied, SettingsRefused."""
        self._say("Importing vLLM")
        watching = asyncio.create_task(self._watch_progress(server))
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(server.start())
        tasks: list[asyncio.Task[Any]] = [watching, stopping, starting]
        try:
            await asyncio.wait((starting, stopping, watching), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return False
            if watching.done():
                watching.result()
            try:
                starting.result()
            except (OSError, EOFError) as error:
                raise EngineDied("vLLM could not be imported; the lines above say why") from error
            size = engine.weights_bytes(self._model) / 1e6
            self._say(f"Loading {self._model} ({size:.0f} MB)")
            ending = asyncio.create_task(server.ended())
            answering = asyncio.create_task(first_answer(self._config, self._api_keys))
            tasks += [ending, answering]
            await asyncio.wait((ending, answering, stopping, watching), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                return False
            if watching.done():
                watching.result()
            if ending.done():
                if server.exit_status == USAGE_STATUS:
                    fault = Fault(
                        f"citadel-llm-{self._config.name}", 0, "vLLM refuses these flags; the lines above say which"
                    )
                    raise SettingsRefused([fault])
                raise EngineDied(f"{ending.result()} before the model was ready{self._why_memory()}")
            try:
                answering.result()
            except NotAnswered as error:
                raise EngineDied(f"the model does not answer a request: {error}") from error
            return True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_progress(self, server: ServerProcess) -> None:
        """Have systemd wait while memory or reads of the loading server grow.

        Raises EngineHung once they have stood still for START_TIMEOUT_SEC.
        """
        limit = self._config.start_timeout_sec
        seen, moved = (0, 0), time.monotonic()
        while time.monotonic() - moved < limit:
            self._notifier.send(EXTEND_TIMEOUT_USEC=round((limit + STALL_MARGIN_SEC) * 1e6))
            await asyncio.sleep(min(PROGRESS_INTERVAL_SEC, limit / 4))
            now = await asyncio.to_thread(server.memory_and_reads)
            if any(new - old >= PROGRESS_BYTES for new, old in zip(now, seen, strict=True)):
                seen, moved = now, time.monotonic()
        raise EngineHung(f"loading has made no progress for {limit:g} s (START_TIMEOUT_SEC) and was ended")

    async def _until_something_happens(self, server: ServerProcess) -> str:
        """Wait for a stop, a reload or the server's end; the reason of the end, empty for the other two."""
        ending = asyncio.create_task(server.ended())
        tasks: list[asyncio.Task[Any]] = [
            ending,
            asyncio.create_task(self._stop.wait()),
            asyncio.create_task(self._reload.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return ending.result() if ending.done() and not self._stop.is_set() else ""
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _recover(self, reason: str) -> None:
        """Note a death; the next turn of the loop starts a new server. Raises EngineDied if there were too many."""
        now = time.monotonic()
        reason += self._why_memory("")
        if len(self._deaths) == RECOVERIES and now - self._deaths[0] < RECOVERY_WINDOW_SEC:
            raise EngineDied(f"{reason}, and {RECOVERIES} before it in the last {RECOVERY_WINDOW_SEC:.0f} s")
        self._deaths.append(now)
        log.error("%s; starting a new one", reason[0].upper() + reason[1:])
        self._notifier.send(STATUS=f"Recovering: {reason}")

    def _why_memory(self, otherwise: str = "; the lines above say why") -> str:
        """The end of a sentence about a death: memory, if the kernel has killed a process since the last one."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        if self._oom_kills == before:
            return otherwise
        return (
            f", killed for want of memory: MEMORY_LIMIT_GB={self._config.memory_limit_gb:g} is too little; "
            "raise it, or lower KV_CACHE_GB"
        )

    async def _drain(self, server: ServerProcess) -> None:
        self._notifier.send(STOPPING=1)
        limit = self._config.drain_timeout_sec
        self._say(f"Stopping: waiting up to {limit:g} s for requests in flight")
        if not await server.drain(limit + DRAIN_GRACE_SEC):
            log.warning("Requests were still in flight after %g s and have been cut", limit)
        self._say("Stopped")

    async def _reread_settings(self) -> bool:
        """Take in the settings file as it is now; False if it is refused, and the old settings stay in force."""
        self._reload.clear()
        self._notifier.send(RELOADING=1)
        old = self._config
        try:
            config, model = await asyncio.to_thread(self._reread)
            for key in ("host", "port", "api_key_file"):
                if getattr(config, key) != getattr(old, key):
                    # Its packet filter, its socket and its credentials are those of the unit's start.
                    fault = Fault(
                        instance_file(old.name), 0, f"{key.upper()} changed, which takes a restart, not a reload"
                    )
                    raise SettingsRefused([fault])
        except CitadelError as error:
            log.error("%s", error)
            self._answer_reload(str(error))
            self._say("Ready with the old settings: the reload was refused, the journal says why", READY=1)
            return False
        self._answer_reload()
        self._previous = (old, self._model)
        self._config, self._model = config, model
        self._say("Reloading: waiting for requests in flight")
        return True

    def _answer_reload(self, refused: str = "") -> None:
        """Tell the unit's ExecReload= that the reload is taken up, or why it is not."""
        if refused:
            (self._run_time / "refused").write_text(refused + "\n", encoding="utf-8")
        (self._run_time / "reload").unlink(missing_ok=True)

    def _say(self, status: str, **state: int) -> None:
        log.info("%s", status)
        self._notifier.send(STATUS=status, **state)
