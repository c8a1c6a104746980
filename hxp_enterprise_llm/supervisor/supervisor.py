"""One instance from start to stop: phases for systemd, readiness, recovery, reload and drain.

The main process imports neither vLLM nor torch. It owns the listening socket, so that connections wait instead of
being refused while an engine is replaced, and it starts servers from a fork server that has imported vLLM once.
"""

import asyncio
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.engine import launch
from hxp_enterprise_llm.engine.model_files import weights_bytes
from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.state import LastReload, Phase, ReloadOutcome, StateFile, sentence
from hxp_enterprise_llm.protocol.worker import Limits
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.settings.errors import CitadelError, EngineDied, EngineHung, OutOfMemory
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import instance_file
from hxp_enterprise_llm.supervisor import fork_server, reload
from hxp_enterprise_llm.supervisor.hang import watch
from hxp_enterprise_llm.supervisor.listener import disconnect_stalled_clients, listen
from hxp_enterprise_llm.supervisor.memory_events import oom_kills
from hxp_enterprise_llm.supervisor.readiness import first_answer
from hxp_enterprise_llm.supervisor.recoveries import PAUSES_SEC, WINDOW_SEC, Recoveries
from hxp_enterprise_llm.supervisor.retirement import Retirement
from hxp_enterprise_llm.supervisor.server_process import ServerProcess
from hxp_enterprise_llm.supervisor.startup import bring_up
from hxp_enterprise_llm.supervisor.stop import StopPlan, left
from hxp_enterprise_llm.system import notify

log = logging.getLogger(__name__)

RECOVERABLE = (EngineDied, EngineHung, OutOfMemory)


class Supervisor:
    """Runs one instance.

    `state` reports its phase to other programs. `reread` reads the settings again for a reload, `unit` is the
    environment from systemd, and `run_time` the unit's run-time directory. `now` has the settings in effect, `servers`
    the running servers. `run` is the whole life of the instance; the other public methods are its steps.
    """

    def __init__(
        self,
        config: ServiceConfigSchema,
        model: str,
        credentials: Credentials,
        notifier: notify.Notifier,
        state: StateFile,
        *,
        reread: Callable[[], tuple[ServiceConfigSchema, str]],
        unit: Mapping[str, str],
        run_time: Path,
    ) -> None:
        self.now = reload.InEffect(config, model, credentials, reread)
        # The main process probes the model with a key of its own.
        self._key = secrets.token_urlsafe()
        self._notifier = notifier
        self.servers: list[ServerProcess] = []
        # Restored if no server can start with the settings of a reload.
        self._previous: tuple[ServiceConfigSchema, str] | None = None
        self._went_back = self._waited = ""  # reasons, reported when the next server is ready
        self._unit = unit
        self._begin = 0.0
        self._retiring = Retirement()
        self._plan: StopPlan | None = None
        self._stop, self._reloads = asyncio.Event(), reload.Requests(run_time, self.carry_out)
        self._undisturbed = False  # no start, reload or stop is in progress; each of them reports its own phase
        self._recoveries = Recoveries()
        self._was_ready = False
        self._oom_kills = oom_kills()
        self._state = state

    def _tell(self, phase: Phase, reason: str = "", reload: LastReload | None = None, **assignments: int) -> None:
        """Write the phase, then tell systemd: a program that learns of a change from systemd finds it written."""
        self._notifier.say(self._state.enter(phase, reason, reload), **assignments)

    def _tell_step(self, phase: Phase, reason: str = "") -> None:
        """Report a step of the start. While an engine is replaced, only log it: the phase then names the reason."""
        if self._was_ready:
            log.info("%s", sentence(phase, reason))
        else:
            self._tell(phase, reason)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CitadelError with the reason of any other end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.begin_stop)
        loop.add_signal_handler(signal.SIGHUP, log.warning, "SIGHUP does nothing; use systemctl reload")
        listener = listen(self.now.config)
        try:
            async with self._reloads:
                while not self._stop.is_set():
                    await self.serve_or_recover(listener)
        finally:
            listener.close()
            await self._retiring.cut(left(self._plan.ended) if self._plan else None)
        self._tell(Phase.STOPPED)

    def begin_stop(self) -> None:
        """Make the plan of the stop; a second signal changes nothing."""
        if self._plan:
            return
        limit = self.now.config.drain_timeout_sec
        plan = self._plan = StopPlan.of(limit, time.monotonic())
        self._undisturbed = False
        self._stop.set()
        # systemd may have read a different DRAIN_TIMEOUT_SEC than the server.
        extension = round((plan.timeout - plan.begin) * 1e6)
        reason = f"waiting up to {limit:g} s for requests in flight"
        self._tell(Phase.STOPPING, reason, STOPPING=1, EXTEND_TIMEOUT_USEC=extension)

    async def _kill(self, server: ServerProcess) -> None:
        """Kill a server and wait until its memory is free; during a stop, no longer than the stop plan allows."""
        # A kill can take half as long as the watchdog allows, and the step before it may have taken the other half.
        self._notifier.feed()
        killing, stopping = asyncio.create_task(server.kill()), asyncio.create_task(self._stop.wait())
        await asyncio.wait((killing, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not killing.done() and self._plan:
            await asyncio.wait((killing,), timeout=left(self._plan.ended))
        if killing.done():
            killing.result()

    async def serve_or_recover(self, listener: socket.socket) -> None:
        """Serve until a stop or a reload that needs a new start; recover from a failure that a new server can cure."""
        try:
            await self.serve(listener)
        except CitadelError as error:
            if self._plan:
                log.warning("%s, while the service stops", error, extra=error.fields)
            elif self._previous:
                log.error("%s; going back to the settings before the reload", error, extra=error.fields)
                self.now.back(*self._previous)
                self._previous, self._went_back = None, str(error)
            elif self._was_ready:
                # A server has started with these settings before, so they are not the reason.
                await self.recover(error if isinstance(error, RECOVERABLE) else EngineDied(str(error)))
            else:
                raise

    async def serve(self, listener: socket.socket) -> None:
        """Serve until a stop, or a reload that needs a new start. Raises CitadelError on any other end."""
        server = await self.new_server(listener)
        try:
            if not await self.start(server):
                return
            while True:
                disconnect_stalled_clients(listener, self.now.config)
                await self.until_something_happens(server)
                if self._plan:
                    listener.close()
                    await self._drain(self._plan, server)
                    return
                before = self.now.turn()
                if apart := reload.apart(*before, self.now.config, self.now.model):
                    self._previous, self._waited = before, apart
                    self._tell(Phase.RELOADING, f"the old server leaves first: {apart}; new requests wait")
                    self._retiring.begin(server, before[0].drain_timeout_sec)
                    while not self._stop.is_set() and not await self._retiring.over(notify.FEED_SEC):
                        self._notifier.feed(notify.FEED_SEC)
                    if self._plan:
                        await self._drain(self._plan, None)
                    return
                server = await self.replace(server, *before, listener)
        except EngineDied as error:
            raise self._with_reason(error) from None
        finally:
            await self._kill(server)

    async def new_server(self, listener: socket.socket) -> ServerProcess:
        """Start a server with the settings now in effect. Raises EngineDied if its process cannot be started."""
        config, model = self.now.config, self.now.model
        self._begin = time.monotonic()
        keys = self.now.credentials.and_key(digest(self._key))
        try:
            await fork_server.use(launch.environment(config, model, self._unit))
            server = ServerProcess(
                config.start_method, launch.arguments(config, model), listener, keys, Limits.of(config)
            )
        except OSError as error:
            raise EngineDied(f"the server could not be started: {error}") from error
        self.servers = [server, *(other for other in self.servers if not other.gone)]
        return server

    async def start(self, server: ServerProcess) -> bool:
        """Start the server, wait for its first answer and open it to clients; False if a stop came first."""
        config, size = self.now.config, weights_bytes(self.now.model) / 1e6
        self._tell_step(Phase.IMPORTING)
        ready = await bring_up(
            server,
            self._stop,
            config.start_timeout_sec,
            on_import=lambda: self._tell_step(Phase.LOADING, f"{self.now.model} ({size:.0f} MB)"),
            answer=lambda: first_answer(server.url, config.api_name, self._key),
            feed=lambda progress: self._notifier.feed(config.start_timeout_sec if progress else 0),
            file=instance_file(config.name),
        )
        if not ready:
            return False
        server.watch_engines()
        if not await server.open(self._stop):
            return False
        # A reload may have been requested while a dead engine was replaced: READY=1 would end it for systemd.
        reloading = self._was_ready and self.now.due.is_set()
        self._previous, self._was_ready = None, True
        took = time.monotonic() - self._begin
        address = Address.of(self.now.config)
        self._state.started(took)
        self._state.serves(address, self.now.credentials.expires)
        reason, ended = f"{config.api_name} on {address.url}, started in {took:.1f} s", None
        if self._went_back:
            reason, ended = _reverted(self._went_back)
        elif self._state.now.phase is Phase.RELOADING:
            reason += f"; requests waited during the reload: {self._waited}" if self._waited else ""
            ended = LastReload(outcome=ReloadOutcome.DONE, at=time.time(), waited=self._waited)
        self._went_back = self._waited = ""
        self._tell(Phase.READY, reason, ended, **({} if reloading else {"READY": 1}))
        return True

    async def replace(
        self, server: ServerProcess, old: ServiceConfigSchema, old_model: str, listener: socket.socket
    ) -> ServerProcess:
        """Start a server beside `server`, and retire `server` once the new one serves; returns the server in use then.

        Raises CitadelError if there is none: the old server has ended meanwhile, and the new one does not start.
        """
        successor, ready, failure = None, False, None
        self._tell(Phase.RELOADING, "a server with the new settings starts beside the old one")
        deaths: list[CitadelError] = []
        ending = asyncio.create_task(self._end_of(server, old, deaths.append))
        try:
            successor = await self.new_server(listener)
            ready = await self.start(successor)
        except CitadelError as error:
            failure = self._with_reason(error)
        finally:
            # If the old server has died, wait until its remains are killed.
            if not deaths:
                ending.cancel()
            await asyncio.wait((ending,))
        if not ending.cancelled():
            ending.result()
        ended = deaths[0] if deaths else None
        if successor and ready:
            if ended:
                self._state.failed(ended.code, str(ended))
            self._retiring.begin(server, old.drain_timeout_sec, patient=True)
            return successor
        if successor:
            await self._kill(successor)
        if failure:
            self.now.back(old, old_model)
            if ended:
                self._went_back = str(failure)
                raise ended
            log.error("%s; still serving with the settings before the reload", failure, extra=failure.fields)
            if not self._plan:
                self._tell(Phase.READY, *_reverted(str(failure)), READY=1)
        return server

    async def _end_of(
        self, server: ServerProcess, config: ServiceConfigSchema, report: Callable[[CitadelError], None]
    ) -> None:
        """Wait until a server dies or hangs while its successor loads; report that, and kill its other processes."""
        try:
            await watch(config, server, lambda: None)
        except RECOVERABLE as error:
            failure = self._with_reason(error)
        log.error("%s, while another one is starting", failure, extra=failure.fields)
        report(failure)
        await self._kill(server)

    async def reload_due(self) -> None:
        """Wait until a reload needs another server and the server replaced by the previous reload has ended."""
        await self.now.due.wait()
        await self._retiring.over()

    async def until_something_happens(self, server: ServerProcess) -> None:
        """Wait for a stop or a reload. Raises EngineDied when the server ends, EngineHung if it makes no progress."""

        def feed() -> None:
            # A reload that is due waits for the end of the previous one.
            self._notifier.feed(notify.FEED_SEC if self.now.due.is_set() else 0)

        watching = asyncio.create_task(watch(self.now.config, server, feed))
        events = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self.reload_due())]
        keeping = asyncio.create_task(fork_server.keep())
        tasks: list[asyncio.Task[Any]] = [watching, *events, keeping]
        self._undisturbed = True
        try:
            await asyncio.wait((watching, *events), return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and not self._stop.is_set():
                watching.result()
        finally:
            self._undisturbed = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def recover(self, failure: CitadelError) -> None:
        """Count a failure and pause; the loop then starts a new server. Raises the failure if there were too many."""
        pause = self._recoveries.pause(time.monotonic())
        if pause is None:
            before = f"{len(PAUSES_SEC)} before it in the last {WINDOW_SEC:.0f} s"
            raise type(failure)(f"{failure}, and {before}") from failure
        self._state.failed(failure.code, str(failure))
        text = str(failure)
        after = f" in {pause:g} s" if pause else ""
        log.error("%s; starting a new one%s", text[0].upper() + text[1:], after, extra=failure.fields)
        self._tell(Phase.RECOVERING, str(failure), WATCHDOG=1)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), pause)

    def _with_reason(self, error: CitadelError) -> CitadelError:
        """The error, or OutOfMemory if the kernel has killed a process of this unit since the last call."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        if self._oom_kills == before or not isinstance(error, EngineDied):
            return error
        limit = f"MEMORY_LIMIT_GB={self.now.config.memory_limit_gb:g}"
        return OutOfMemory(f"{error}: out of memory, {limit} is too little; raise it, or lower KV_CACHE_GB")

    async def _drain(self, plan: StopPlan, server: ServerProcess | None) -> None:
        """End the server after its requests, and wait for the retiring server; without `server`, only the latter."""
        leaving = [self._retiring.over(left(plan.killed)), *([server.drain(plan)] if server else [])]
        if not all(await asyncio.gather(*leaving)):
            log.warning("Requests were still in flight after %g s and were aborted", plan.drained - plan.begin)

    async def carry_out(self, request: reload.Request) -> None:
        """Carry out root's request. Keys and certificate are in effect in every server before the answer is sent."""
        now, refused, another = self.now, "", False
        ended = LastReload(outcome=ReloadOutcome.DONE, at=time.time())
        try:
            another = await now.take_in(request)
            keys = now.credentials.and_key(digest(self._key))
            await asyncio.gather(*(server.take(keys) for server in self.servers))
            address = Address.of(now.config)
            reason = f"{now.config.api_name} on {address.url}, with the new keys and certificate"
            if self._was_ready:
                self._state.serves(address, now.credentials.expires)
        except CitadelError as error:
            log.error("%s", error, extra=error.fields)
            refused = str(error)
            reason = f"with the old settings; the reload was refused: {error}"
            ended = LastReload(outcome=ReloadOutcome.REFUSED, at=time.time(), reason=refused)
        if another:
            # Set before the answer, so that systemctl waits until the other server is ready.
            self._notifier.send(RELOADING=1)
            now.due.set()
        else:
            if not request.keys_only:
                self._state.reloaded(ended)
            if self._undisturbed:
                self._tell(Phase.READY, reason)
        request.answer(refused)


def _reverted(why: str) -> tuple[str, LastReload]:
    """Reason and outcome of a reload with whose settings no server could start."""
    reason = f"with the old settings; the server could not start with the new ones: {why}"
    return reason, LastReload(outcome=ReloadOutcome.REVERTED, at=time.time(), reason=why)
