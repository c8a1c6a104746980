"""All instances: updated from systemd, state files and probes; every request is answered at once, from memory."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.control.failures import kind_of
from hxp_enterprise_llm.control.service import Service, State, present, run_time_path
from hxp_enterprise_llm.monitoring import cgroups
from hxp_enterprise_llm.monitoring.cgroups import Usage
from hxp_enterprise_llm.monitoring.health import ServicesHealth, Target, overall
from hxp_enterprise_llm.monitoring.instance import NO_ADDRESS, NOT_PROBED, Instance
from hxp_enterprise_llm.monitoring.ledger import Event
from hxp_enterprise_llm.monitoring.presence import Presence
from hxp_enterprise_llm.monitoring.store import Store
from hxp_enterprise_llm.protocol import state as state_file
from hxp_enterprise_llm.protocol.failures import Kind
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.values import HostLabels, load_host

log = logging.getLogger("citadel-llm-monitor")

FRESH_SEC = 1.0
"""Maximum age of an answer (seconds): the kernel's files are read no more often, however many clients ask."""


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size


class Fleet:
    """The instances of this host.

    `problem` is why systemd cannot be reached, or ""; `host` has the host's labels for people.

    `ask` probes the endpoint of one instance (`probe.ask`). `root` is the file root of settings and state files,
    `groups` that of the control groups.
    """

    def __init__(
        self,
        store: Store,
        ask: Callable[[Address], Awaitable[str | None]],
        root: str = "/",
        groups: Path = cgroups.CGROUPS,
    ) -> None:
        self.store = store
        self.problem = "systemd has not answered yet"
        self.instances: dict[str, Instance] = {}
        self.reread: Callable[[], None] = lambda: None
        self._ask = ask
        self._root = root
        self._groups = groups
        self.host = HostLabels.of(load_host(root))
        self._run_time = ""
        self._short = False
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._made = -FRESH_SEC
        self._answer: ServicesHealth | None = None

    # Called by units.UnitWatch

    def names(self) -> list[str]:
        """Read the settings again; returns the names of the instances that have a settings file."""
        host = load_host(self._root)
        self._run_time = run_time_path(host, self._root)
        self.host = HostLabels.of(host)
        self.reread()
        names = settings.instance_names(self._root)
        for name in names:
            self._instance(name)
        of_the_host = _stamp(settings.host_file(self._root))
        for instance in self.instances.values():
            # There may be thousands of files, and every daemon-reload of the host calls this.
            read = (of_the_host, _stamp(settings.instance_file(instance.name, self._root)))
            if read == instance.read:
                continue
            instance.read = read
            try:
                instance.config, warnings = settings.load(instance.name, self._root)
                instance.findings = tuple(str(warning) for warning in warnings)
            except SettingsRefused as error:
                instance.config, instance.findings = None, tuple(str(finding) for finding in error.findings)
            except OSError as error:
                instance.config, instance.findings = None, (str(error),)
        return names

    def present(self, names: set[str]) -> None:
        """Forget the instances that no longer exist."""
        for name in self.instances.keys() - names:
            del self.instances[name]
        for name in names:
            self._instance(name)
        self._answer = None

    def changed(self, name: str, properties: dict[str, Any], boot: int) -> None:
        """Update an instance from properties of its unit."""
        instance = self.instances.get(name)
        if instance is None:
            # An instance without a settings file is included once it runs; systemd also signals that it loads a unit.
            if properties.get("ActiveState", "inactive") == "inactive":
                return
            instance = self._instance(name)
        was_up = instance.state.up
        # A complete set of properties replaces the old one: thousands of idle units share one set.
        every = instance.properties.keys() <= properties.keys()
        instance.properties = properties if every else instance.properties | properties
        instance.known = "ActiveState" in instance.properties
        now = time.time()
        if name in self.store.ledgers or instance.state is not State.STOPPED:
            ledger = self.store.ledger(name)
            self._read_state(instance)
            kills = self._oom_kills(instance)
            self.store.add_events(name, *ledger.take_unit(instance.properties, boot, now, kills, instance.told))
            self.store.add_events(name, *self._recovered(instance, now))
        if instance.state.up and not was_up:
            # systemd reports ready once the model has answered. An instance that ran before the monitor must be probed
            # first.
            instance.problem = "" if instance.seen else NOT_PROBED
            self.probe(instance)
        instance.seen = instance.known
        self._look(instance, now)

    def connected(self, problem: str) -> None:
        """The connection to systemd works (""), or does not: then no state is known."""
        if problem and problem != self.problem:
            log.error("%s; trying again", problem)
        elif self.problem and not problem:
            log.info("following systemd, %d instances", len(self.instances))
        self.problem = problem
        if problem:
            for instance in self.instances.values():
                instance.known = instance.seen = False
                self._look(instance, time.time())
        self._answer = None

    # Called at intervals

    def probe(self, instance: Instance) -> None:
        """Probe the endpoint of an instance in the background, unless a probe is running."""
        address = instance.address
        if address is None:
            instance.problem = NO_ADDRESS
            self._look(instance, time.time())
        if address is None or instance.name in self._asking:
            return

        async def ask() -> None:
            try:
                said = await self._ask(address)
            finally:
                self._asking.pop(instance.name, None)
            if said is not None:
                instance.problem = said
            if (said is None) is not self._short:
                self._short = not self._short
                log.warning("the monitor %s descriptors for its probes", "has too few" if self._short else "again has")
            self._look(instance, time.time())

        self._asking[instance.name] = asyncio.create_task(ask())

    def probe_all(self) -> None:
        """Probe all instances that are up, at the same time."""
        for instance in self.instances.values():
            if instance.state.up:
                self.probe(instance)

    async def probed(self) -> None:
        """Wait until the running probes have ended."""
        if self._asking:
            await asyncio.wait(list(self._asking.values()))

    def record(self) -> None:
        """Record the current state of all instances, for uptime and memory peaks."""
        now = time.time()
        self._measure()
        for instance in self.instances.values():
            self._read_state(instance)
            self.store.add_events(instance.name, *self._recovered(instance, now))
            self._look(instance, now)

    # Called by the ports

    def services(self) -> ServicesHealth:
        """All instances by name, from an answer that is at most a second old."""
        if self._answer is None or time.monotonic() - self._made >= FRESH_SEC:
            self._measure()
            found = [self._service(self.instances[name]) for name in sorted(self.instances)]
            self._answer = overall(found, self.host, reachable=not self.problem)
            self._made = time.monotonic()
        return self._answer

    def targets(self) -> list[Target]:
        """The addresses at which the active instances serve vLLM's own metrics."""
        return [
            Target.at(address, one.name, keyed=bool(one.config and one.config.api_key_file))
            for one in sorted(self.instances.values(), key=lambda one: one.name)
            if one.state.active and (address := one.address)
        ]

    def _read_state(self, instance: Instance) -> None:
        """Read the state that the main process of the current run has written."""
        instance.told = present(state_file.read(self._run_time, instance.name), instance.properties)

    def _recovered(self, instance: Instance, now: float) -> list[Event]:
        """The failures from which the main process has recovered since the last call."""
        return self.store.ledger(instance.name).take_state(instance.told, now) if instance.told else []

    def _service(self, instance: Instance) -> Service:
        return instance.service(self.store.ledger_or_empty(instance.name), self.store.uptime(instance.name))

    def _measure(self) -> None:
        now, clock = time.time(), time.monotonic()
        for instance in self.instances.values():
            instance.measure(clock, self._groups)
            if instance.usage == Usage():
                continue
            used = self.store.ledger(instance.name).take_usage(instance.usage)
            if used is not None:
                self.store.add_memory(instance.name, used, instance.usage.memory_limit_bytes, now)

    def _oom_kills(self, instance: Instance) -> int | None:
        """The kernel's count for an instance that was ended by a signal, while its control group still exists."""
        if kind_of(instance.properties) is not Kind.SIGNAL:
            return None
        return cgroups.read(instance.properties.get("ControlGroup") or "", self._groups).oom_kills

    def _look(self, instance: Instance, now: float) -> None:
        for up, since, until in instance.presence.seen(instance.uptime_counts(now), instance.since, now):
            self.store.add_period(instance.name, up, since, until)
        self._answer = None

    def _instance(self, name: str) -> Instance:
        if name not in self.instances:
            self.instances[name] = Instance(name, Presence(self.store.ends.get(name, 0.0)))
        return self.instances[name]
