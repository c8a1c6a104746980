"""All citadel-llm@ units, followed through systemd's signals instead of polling."""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any, Protocol

from dbus_fast import Message

from hxp_enterprise_llm.control.systemd import (
    MANAGER_INTERFACE,
    PROPERTIES_INTERFACE,
    UNITS,
    Systemd,
    readable,
    unit_path,
)
from hxp_enterprise_llm.settings.errors import CitadelError, JobFailed, SystemdUnreachable
from hxp_enterprise_llm.settings.keys import is_instance_name
from hxp_enterprise_llm.settings.units import PREFIX, instance_of, unit_name

log = logging.getLogger("citadel-llm-monitor")

PATH_PREFIX = unit_path(PREFIX)
WANTED = {
    "ActiveState", "SubState", "UnitFileState", "InvocationID", "StateChangeTimestamp", "ActiveEnterTimestamp",
    "ControlGroup", "MainPID", "NRestarts", "StatusText", "Result", "ExecMainStatus", "ExecMainCode",
    "ExecMainStartTimestamp", "ExecMainExitTimestamp", "Job", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax",
}  # fmt: skip
"""Properties that are kept; a unit has about 300 (org.freedesktop.systemd1(5))."""
IDLE: dict[str, Any] = dict.fromkeys(WANTED) | {
    "ActiveState": "inactive", "SubState": "dead", "UnitFileState": "disabled", "StatusText": "",
}  # fmt: skip
IDLE_ENABLED = IDLE | {"UnitFileState": "enabled"}
"""Properties of a unit that systemd has not loaded: it neither runs nor has failed."""
SILENT = {"ActiveState", "SubState", "InvocationID"}
"""When one of these changes, properties without signals may have changed as well, such as ControlGroup."""
FIRST_PAUSE_SEC, LONGEST_PAUSE_SEC = 1.0, 30.0
AGAIN_SEC = 5.0
"""Pause before a unit's properties are read again after systemd has not answered (seconds)."""
TOGETHER_SEC = 0.05
"""How long changes are collected before the properties without signals are read (seconds)."""
RULES = (
    f"interface='{PROPERTIES_INTERFACE}',member='PropertiesChanged',path_namespace='{UNITS}'",
    f"interface='{MANAGER_INTERFACE}',member='Reloading'",
    f"interface='{MANAGER_INTERFACE}',member='UnitFilesChanged'",
    "sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',"
    "arg0='org.freedesktop.systemd1'",
)


class Listener(Protocol):
    """What `UnitWatch` calls."""

    def names(self) -> list[str]:
        """Read the settings files again; the names of the instances that have one."""

    def changed(self, name: str, properties: dict[str, Any], boot: int) -> None:
        """Properties of an instance's unit, all or only changed ones; `boot` identifies the boot of the host."""

    def present(self, names: set[str]) -> None:
        """The names of all instances: those that have a settings file, are enabled, or are not stopped."""

    def connected(self, problem: str) -> None:
        """The connection to systemd works (""), or the reason why it does not."""


def plain(properties: dict[str, Any]) -> dict[str, Any]:
    """The properties of a unit that are kept."""
    return {name: properties[name] for name in WANTED & properties.keys()}


def instance_at(path: str) -> str | None:
    """The instance of the unit with this bus path, None for other units."""
    if not path.startswith(PATH_PREFIX):
        return None
    unit = re.sub("_([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), path.removeprefix(f"{UNITS}/"))
    name = instance_of(unit)
    return name if name and is_instance_name(name) else None


class UnitWatch:
    """Follows the units while `run` runs, and reconnects when the bus or systemd has disconnected."""

    def __init__(self, listener: Listener, connect: Callable[[], Systemd] = Systemd) -> None:
        self._listener = listener
        self._connect = connect
        self._boot = 0
        self._stale: set[str] = set()
        self._everything = False
        self._wake = asyncio.Event()
        self._signals: dict[str, int] = {}
        self._unanswered: dict[str, str] = {}

    async def run(self) -> None:
        """Never returns."""
        pause = FIRST_PAUSE_SEC
        while True:
            try:
                async with self._connect() as systemd:
                    pause = await self._until_gone(systemd, pause)
            except CitadelError as error:
                self._lost(str(error))
            except Exception:
                log.exception("following systemd failed")
                self._lost("systemd's answers cannot be read; see the journal")
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SEC)

    async def _until_gone(self, systemd: Systemd, pause: float) -> float:
        """Follow the units until the bus disconnects; returns the pause before the next attempt (seconds)."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        tasks = [asyncio.create_task(self._follow(systemd)), asyncio.create_task(systemd.gone())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            raise SystemdUnreachable("the system bus has disconnected")
        except CitadelError as error:
            self._lost(str(error))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return FIRST_PAUSE_SEC if loop.time() - begin > LONGEST_PAUSE_SEC else pause

    def _lost(self, text: str) -> None:
        self._listener.connected(text)

    async def _follow(self, systemd: Systemd) -> None:
        self._everything = True
        self._wake.set()
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await systemd.listen(lambda message: self._on_signal(message, lost), *RULES)
        # The start time of the manager identifies this boot.
        self._boot = await systemd.started()
        while True:
            wake = asyncio.create_task(self._wake.wait())
            await asyncio.wait((wake, lost), return_when=asyncio.FIRST_COMPLETED)
            wake.cancel()
            if lost.done():
                raise SystemdUnreachable("systemd has disconnected from the bus")
            await asyncio.sleep(TOGETHER_SEC)
            self._wake.clear()
            if self._everything:
                self._everything = False
                self._stale |= await self._all(systemd)
            await asyncio.gather(*(self._ask(systemd, name) for name in self._take_stale()))
            self._listener.connected("")

    def _take_stale(self) -> list[str]:
        names, self._stale = sorted(self._stale), set()
        return names

    async def _all(self, systemd: Systemd) -> set[str]:
        """Report all instances, and the properties of those that systemd has not loaded; returns the other names.

        For a query about a unit that is not loaded, systemd would load and unload it, which blocks systemd for 5 ms
        (measured); there may be thousands.
        """
        signals = dict(self._signals)
        pattern = [unit_name("*")]
        (loaded,) = await systemd.call("ListUnitsByPatterns", "asas", [], pattern)
        (files,) = await systemd.call("ListUnitFilesByPatterns", "asas", ["enabled"], pattern)
        held = {name: state for unit, _, _, state, *_ in loaded if (name := instance_of(unit))}
        enabled = {name for path, _ in files if (name := instance_of(path.rpartition("/")[2]))}
        known = {name for name, state in held.items() if state != "inactive"} | enabled
        names = {*self._listener.names(), *filter(is_instance_name, known)}
        self._listener.present(names)
        self._signals = {name: count for name, count in self._signals.items() if name in names}
        self._unanswered = {name: why for name, why in self._unanswered.items() if name in names}
        # A unit that has sent a signal in the meantime is loaded now.
        idle = {name for name in names - held.keys() if self._signals.get(name) == signals.get(name)}
        for name in idle:
            self._unanswered.pop(name, None)
            self._listener.changed(name, IDLE_ENABLED if name in enabled else IDLE, self._boot)
        return names - idle

    async def _ask(self, systemd: Systemd, name: str) -> None:
        signals = self._signals.get(name, 0)
        try:
            properties = plain(await systemd.properties(unit_name(name)))
        except JobFailed as error:
            if self._unanswered.get(name) != str(error):
                log.warning("%s: %s; asking again every %g s", name, error, AGAIN_SEC)
            self._unanswered[name] = str(error)
            asyncio.get_running_loop().call_later(AGAIN_SEC, self._once_more, name)
            return
        self._unanswered.pop(name, None)
        if self._signals.get(name, 0) == signals:
            self._listener.changed(name, properties, self._boot)
        else:
            # A signal came before the answer, and may be newer.
            self._again(name)

    def _once_more(self, name: str) -> None:
        if name in self._unanswered:
            self._again(name)

    def _again(self, name: str) -> None:
        self._stale.add(name)
        self._wake.set()

    def _on_signal(self, message: Message, lost: "asyncio.Future[None]") -> None:
        if message.member == "PropertiesChanged":
            name = instance_at(message.path or "")
            if name is None:
                return
            self._signals[name] = self._signals.get(name, 0) + 1
            properties = plain(readable(message.body[1]))
            self._listener.changed(name, properties, self._boot)
            if SILENT & properties.keys():
                self._again(name)
        elif message.member == "NameOwnerChanged":
            if not lost.done():
                lost.set_result(None)
        elif message.member == "UnitFilesChanged" or (message.member == "Reloading" and not message.body[0]):
            self._everything = True
            self._wake.set()
