"""The monitor: it follows systemd, serves two ports, probes the instances and writes the store."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from hxp_enterprise_llm.monitoring import metrics, probe, web
from hxp_enterprise_llm.monitoring.fleet import Fleet
from hxp_enterprise_llm.monitoring.ports import Port
from hxp_enterprise_llm.monitoring.store import Store
from hxp_enterprise_llm.monitoring.units import UnitWatch
from hxp_enterprise_llm.settings.values import load_host, one_port_for_both
from hxp_enterprise_llm.system.notify import Notifier

log = logging.getLogger("citadel-llm-monitor")

PROBE_SEC = 3.0
"""How often each instance's endpoint is probed (seconds); an instance that becomes active is probed at once."""
RECORD_SEC = 10.0
"""How often the store is written (seconds). A power failure or a SIGKILL loses at most this much of the history."""
FIRST_LOOK_SEC = 5.0
"""How long the monitor waits for systemd and the first probes before it reports that it is ready (seconds)."""
OWN_KEYS = ("SERVER_IP", "HEALTH_PORT", "METRICS_PORT")


class Writer:
    """Writes the store in a thread, one write at a time. A write that has begun is never abandoned.

    `record` adds the current measurements to the store; `record_sec` is the time between two writes (seconds).
    """

    def __init__(self, store: Store, record: Callable[[], None], record_sec: float = RECORD_SEC) -> None:
        self._store = store
        self._record = record
        self._record_sec = record_sec
        self._writing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Write repeatedly. If this is cancelled during a write, the write continues, and `close` waits for it."""
        while True:
            await asyncio.sleep(self._record_sec)
            self._record()
            self._writing = asyncio.create_task(self._write())
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Wait for a write in progress, write the rest once, and close the store."""
        if self._writing:
            await asyncio.wait([self._writing])
        self._record()
        await asyncio.to_thread(self._store.close)

    async def _write(self) -> None:
        batch = self._store.batch()
        if not await asyncio.to_thread(self._store.write, batch, time.time()):
            self._store.put_back(batch)


class Monitor:
    """The monitor's process. `run` ends on SIGTERM or SIGINT."""

    def __init__(
        self, store: Store, notifier: Notifier, version: str, root: str = "/", record_sec: float = RECORD_SEC
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._root = root
        self._asker = probe.client()
        self._fleet = Fleet(store, lambda address: probe.ask(self._asker, address), root)
        self._fleet.reread = self._reread
        self._writer = Writer(store, self._fleet.record, record_sec)
        host = load_host(root)
        for finding in host.findings:
            log.warning("%s", finding)
        self._conflict = one_port_for_both(host)
        if self._conflict:
            log.error("%s", self._conflict)
        self._settings = {key: host.values[key] for key in OWN_KEYS}
        self._changed = ""
        address, *numbers = self._settings.values()
        served: tuple[tuple[str, Any], ...] = (
            ("health", web.application(self._fleet, version, self._problems)),
            ("metrics", metrics.application(self._fleet, version)),
        )
        self._ports = [
            Port(what, key, address, number, application=application, changed=self._say)
            for (what, application), key, number in zip(served, OWN_KEYS[1:], numbers, strict=True)
            if not (self._conflict and what == "metrics")
        ]
        self._said = ""
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises the error that ended one of the tasks."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        tasks = [
            self._task(work)
            for work in (
                UnitWatch(self._fleet).run(),
                *(port.run() for port in self._ports),
                self._first_look(),
                self._probe(),
                self._writer.run(),
            )
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        self._notifier.send(STOPPING=1)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await self._writer.close()
        await self._asker.aclose()
        for error in ended:
            # A task never ends by itself: after an exception systemd restarts the monitor.
            if isinstance(error, Exception):
                raise error

    @staticmethod
    def _task(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return asyncio.create_task(work)

    async def _first_look(self) -> None:
        """Report READY after the first attempt at each port and the first probes; then feed the watchdog."""
        begin = time.monotonic()
        for port in self._ports:
            await port.tried.wait()
        while self._fleet.problem and time.monotonic() - begin < FIRST_LOOK_SEC:
            await asyncio.sleep(0.02)
        await self._fleet.probed()
        self._notifier.send(READY=1)
        while True:
            self._say()
            self._notifier.send(WATCHDOG=1)
            await asyncio.sleep(PROBE_SEC)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SEC)
            self._fleet.probe_all()

    def _reread(self) -> None:
        """Read the host's settings after a daemon-reload. The ports change only with a restart of the monitor."""
        host = load_host(self._root)
        changed = [key for key in OWN_KEYS if host.values[key] != self._settings[key]]
        text = f"{', '.join(changed)} changed: systemctl restart citadel-llm-monitor" if changed else ""
        if text and text != self._changed:
            log.warning("%s", text)
        self._changed = text

    def _problems(self) -> list[str]:
        """Problems of the monitor other than those of the fleet and the store."""
        return [*filter(None, [self._conflict, *(port.problem for port in self._ports), self._changed])]

    def _say(self) -> None:
        """Update the status line of `systemctl status`."""
        served = [f"{port.where}" for port in self._ports if port.tried.is_set() and not port.problem]
        text = f"Serves {' and '.join(served) or 'nothing yet'}, {len(self._fleet.instances)} instances"
        text = "; ".join(filter(None, [text, *self._problems(), self._fleet.problem, self._store.problem]))
        if text != self._said:
            self._said = text
            self._notifier.send(STATUS=text)
