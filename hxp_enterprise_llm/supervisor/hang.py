"""Whether a serving vLLM makes progress. `/health` cannot tell: it answers while the engine hangs (vLLM issue 19849).

An idle server hangs only if its event loop is blocked. A server with requests that wait for the engine hangs if the
engine produces nothing: within seconds if its processes use no CPU time or a signal has stopped one, otherwise after
HANG_TIMEOUT_SEC.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NoReturn

from hxp_enterprise_llm.settings.errors import EngineDied, EngineHung
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.supervisor import process_use
from hxp_enterprise_llm.supervisor.server_process import Heartbeat, ServerProcess

log = logging.getLogger(__name__)

LOOK_SEC = 1.0
STILL_SEC = 10.0
"""How long all processes may be idle while requests wait. A working engine uses CPU time every second."""
STILL_SHARE = 0.02
"""Share of a core below which processes count as idle: the event loop's own timers stay below it."""
STOPPED_SEC = 3.0
"""How long a signal may have stopped a process."""
STALE_SEC = 5.0
"""Age up to which a heartbeat's number of waiting requests is used."""
SILENT_SEC = 30.0
"""How long the API server's event loop may be blocked while its process uses no more than 0.02 s of CPU time in all; it
sends a heartbeat a second. A loop that works, for example on the tool calls of a long answer, may be blocked for
HANG_TIMEOUT_SEC."""


async def watch(config: ServiceConfigSchema, server: ServerProcess, feed: Callable[[], None]) -> NoReturn:
    """Watch a serving server. Raises EngineDied when it ends, EngineHung if it makes no progress.

    `feed` is called after every check that finds no hang.
    """
    ending = asyncio.create_task(server.ended())
    watching = asyncio.create_task(HangWatch(config, server, feed).run())
    try:
        await asyncio.wait((ending, watching), return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        raise EngineDied(ending.result())
    finally:
        for task in (ending, watching):
            task.cancel()
        await asyncio.gather(ending, watching, return_exceptions=True)


class HangWatch:
    """Detects a hang of one server from its heartbeats and the CPU time of its processes; `feed` as in `watch`.

    It looks every `look_sec` seconds, LOOK_SEC by default.
    """

    def __init__(
        self,
        config: ServiceConfigSchema,
        server: ServerProcess,
        feed: Callable[[], None],
        now: float | None = None,
        look_sec: float | None = None,
    ) -> None:
        self._limit = config.hang_timeout_sec
        # Processes that wait for a GPU use no CPU time.
        self._by_cpu = not config.gpu_devices
        self._server, self._feed = server, feed
        self._look_sec = LOOK_SEC if look_sec is None else look_sec
        now = time.monotonic() if now is None else now
        self._last: Heartbeat | None = None
        self._moved = self._busy = self._running = now
        self._cpu, self._read = 0.0, 0
        self._heard = self._awake = now
        self._own = 0.0

    async def run(self) -> NoReturn:
        """Check repeatedly. Raises EngineHung with the reason."""
        while True:
            await asyncio.sleep(self._look_sec)
            now = time.monotonic()
            try:
                stopped, effort, own = await asyncio.to_thread(self._look)
            except OSError as error:
                # Without a free file descriptor, for example, nothing is known; the server may be healthy.
                log.warning("The processes of the server cannot be examined: %s", error.strerror)
            else:
                reason = self.reason(now, self._server.heartbeat, stopped, *effort, own=own)
                if reason:
                    raise EngineHung(reason)
            self._feed()

    def _look(self) -> tuple[str, tuple[float, int], float]:
        everything, engines = self._server.processes(), self._server.engines()
        own, _ = process_use.effort([process for process in everything if process not in engines])
        # The API server counts apart: new requests and probes keep it busy while the engine hangs.
        return process_use.stopped(everything), process_use.effort(engines), own

    def reason(
        self, now: float, heartbeat: Heartbeat | None, stopped: str, cpu: float, read: int = 0, *, own: float = 0.0
    ) -> str:
        """Why the server hangs at `now` (monotonic, seconds), or "" if it does not.

        `stopped` names a process that a signal has stopped; `cpu` and `read` are the CPU time (seconds) and the bytes
        read by the engine's processes since they started, `own` is the CPU time of the API server.
        """
        if heartbeat and (self._last is None or heartbeat.at != self._last.at):
            self._heard = now
            if not heartbeat.waiting or self._last is None or heartbeat.progress != self._last.progress:
                self._moved = now
            self._last = heartbeat
        # While the event loop is blocked, nobody knows whether the engine still has to work on them.
        waiting = heartbeat.waiting if heartbeat and now - self._heard < STALE_SEC else 0
        # CPU time decreases when a process ends. A process that waits for pages from disk makes progress too.
        still = 0 <= cpu - self._cpu <= STILL_SHARE * STILL_SEC and read == self._read
        if not waiting or self._moved == now or not still:
            self._busy, self._cpu, self._read = now, cpu, read
        if self._heard == now or own - self._own >= STILL_SHARE * LOOK_SEC:
            self._awake, self._own = now, own
        if not stopped:
            self._running = now
        if now - self._running >= STOPPED_SEC:
            return f"{stopped} is stopped by a signal"
        silent, idle = now - self._heard, now - self._awake
        if silent >= self._limit or idle >= min(SILENT_SEC, self._limit):
            return f"the API server's event loop has been blocked for {silent:.0f} s"
        requests = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
        if self._by_cpu and now - self._busy >= min(STILL_SEC, self._limit):
            return f"{requests} and no process works on " + ("it" if waiting == 1 else "them")
        if now - self._moved >= self._limit:
            return f"{requests} and no token has come for {self._limit:g} s (HANG_TIMEOUT_SEC)"
        return ""
