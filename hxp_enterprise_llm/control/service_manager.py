"""The instances of this host from outside: their state, and actions on them through systemd."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from hxp_enterprise_llm.settings.units import TARGET, instance_of, unit_name

if TYPE_CHECKING:
    from hxp_enterprise_llm.control.service import Service
    from hxp_enterprise_llm.control.systemd import Systemd
    from hxp_enterprise_llm.protocol.state import InstanceState, LastReload
    from hxp_enterprise_llm.settings.host import ServiceManagerConfig

log = logging.getLogger(__name__)

T = TypeVar("T")


class ServiceManager:
    """The instances of this host: their state, and actions on them through systemd.

    Reading needs no privilege. `root` is the file root of settings and state files; `connect` opens the connection to
    systemd. Every method raises CitadelError: NoSuchInstance, SettingsRefused, NotPermitted, SystemdUnreachable or
    JobFailed, whose message ends with the instance's own reason.
    """

    def __init__(
        self,
        config: "ServiceManagerConfig | None" = None,
        root: str = "/",
        connect: "Callable[[], AbstractAsyncContextManager[Systemd]] | None" = None,
    ) -> None:
        # Imported here: the unit's main process imports this package and needs neither D-Bus nor this class.
        from hxp_enterprise_llm.control.systemd import Systemd

        self._config = config
        self._root = root
        self._connect = connect or Systemd

    @property
    def config(self) -> "ServiceManagerConfig":
        """The host-wide settings, read on demand: instances can be listed and stopped without them."""
        from hxp_enterprise_llm.settings.host import ServiceManagerConfig

        if self._config is None:
            self._config = ServiceManagerConfig.load(self._root)
        return self._config

    @cached_property
    def _run_time(self) -> str:
        from hxp_enterprise_llm.control.service import run_time_path
        from hxp_enterprise_llm.settings.values import load_host

        return run_time_path(load_host(self._root), self._root)

    def list_services(self) -> "list[Service]":
        """Every instance that has a settings file, or runs without one, sorted by name."""
        from hxp_enterprise_llm.settings import config

        async def look(systemd: "Systemd") -> "list[Service]":
            running = {name for unit in await systemd.active(unit_name("*")) if (name := instance_of(unit))}
            return await self._look(systemd, sorted({*config.instance_names(self._root), *running}))

        return self._with_systemd(look)

    def status(self, name: str) -> "Service":
        """One instance."""
        self._require(name)
        (service,) = self._with_systemd(lambda systemd: self._look(systemd, [name]))
        return service

    def wait(self, name: str, look: "Callable[[Service], None]", timeout: float | None = None) -> "Service":
        """Wait until an instance is ready, or neither runs nor is about to run; returns the instance.

        `look` is called with the instance after every change that systemd signals. Raises TimeoutError after `timeout`
        seconds.
        """
        self._require(name)
        return self._with_systemd(lambda systemd: asyncio.wait_for(self._until_settled(systemd, name, look), timeout))

    def start(self, *names: str) -> None:
        """Start instances, each after the instances that it requires; return once all are ready."""
        from hxp_enterprise_llm.control.order import in_order

        self._require(*names)
        self._with_systemd(
            lambda systemd: in_order(
                names, self._root, lambda name: self._job(systemd, "Start", name), and_required=True
            )
        )

    def stop(self, *names: str) -> None:
        """Stop instances, each after the instances that require it."""
        from hxp_enterprise_llm.control.order import in_order

        self._require(*names)
        self._with_systemd(
            lambda systemd: in_order(names, self._root, lambda name: self._job(systemd, "Stop", name), reverse=True)
        )

    def restart(self, *names: str) -> None:
        """Restart instances, one after another in the order of their dependencies."""
        self._each("Restart", names)

    def reload(self, *names: str) -> None:
        """Make running instances read their settings again."""
        self._each("Reload", names)

    def enable(self, *names: str) -> None:
        """Start instances at boot, with citadel-llm.target.

        As with systemctl, refused settings do not prevent this; they are logged as a warning.
        """
        from hxp_enterprise_llm.settings import config
        from hxp_enterprise_llm.settings.errors import SettingsRefused

        self._require(*names)
        self._with_systemd(lambda systemd: systemd.enable([unit_name(name) for name in names]))
        for name in names:
            try:
                config.load(name, self._root)
            except SettingsRefused as error:
                log.warning("%s is enabled, but cannot start with these settings: %s", name, error)

    def disable(self, *names: str) -> None:
        """Do not start instances at boot; running instances keep running."""
        self._require(*names)
        self._with_systemd(lambda systemd: systemd.disable([unit_name(name) for name in names]))

    def settings_changed(self) -> None:
        """Make systemd read the settings files again, as with `systemctl daemon-reload`."""
        self._with_systemd(lambda systemd: systemd.call("Reload"))

    def _each(self, verb: str, names: Sequence[str]) -> None:
        from hxp_enterprise_llm.control.order import in_order

        self._require(*names)
        self._with_systemd(
            lambda systemd: in_order(names, self._root, lambda name: self._job(systemd, verb, name), at_once=1)
        )

    def _require(self, *names: str) -> None:
        from hxp_enterprise_llm.settings import config
        from hxp_enterprise_llm.settings.errors import NoSuchInstance

        without = [name for name in names if not config.exists(name, self._root)]
        if not without:
            return
        # An instance without a settings file may still be running.
        running = self._with_systemd(lambda systemd: systemd.active(unit_name("*")))
        for name in without:
            if unit_name(name) not in running:
                raise NoSuchInstance(name)

    def _with_systemd(self, action: "Callable[[Systemd], Awaitable[T]]") -> T:
        async def run() -> T:
            async with self._connect() as systemd:
                return await action(systemd)

        return asyncio.run(run())

    async def _look(self, systemd: "Systemd", names: Sequence[str]) -> "list[Service]":
        units = [unit_name(name) for name in names]
        if len(units) == 1:
            found = [await systemd.properties(units[0])]
        else:
            found = await systemd.properties_of(units, TARGET)
        services = [self._seen(name, properties) for name, properties in zip(names, found, strict=True)]
        return [await self._with_failed_requirement(systemd, service) for service in services]

    def _seen(self, name: str, properties: Mapping[str, Any]) -> "Service":
        from hxp_enterprise_llm.control.service import Service
        from hxp_enterprise_llm.settings import config
        from hxp_enterprise_llm.settings.errors import SettingsRefused

        told = self._told(name, properties)
        try:
            settings, warnings = config.load(name, self._root)
        except SettingsRefused as error:
            return Service.seen(name, None, [str(finding) for finding in error.findings], properties, told)
        return Service.seen(name, settings, [str(warning) for warning in warnings], properties, told)

    def _told(self, name: str, properties: Mapping[str, Any]) -> "InstanceState | None":
        """The state that the main process has written in the unit's current run, or in its last run."""
        from hxp_enterprise_llm.control.service import present
        from hxp_enterprise_llm.protocol import state

        return present(state.read(self._run_time, name), properties)

    async def _with_failed_requirement(self, systemd: "Systemd", service: "Service") -> "Service":
        """A stopped instance, whose reason is the failure of an instance that it requires: systemd gives no reason."""
        from hxp_enterprise_llm.control.service import State

        if service.state is not State.STOPPED or service.config is None:
            return service
        for name in service.config.requires:
            needed = self._seen(name, await systemd.properties(unit_name(name)))
            if needed.state is State.FAILED:
                why = needed.reason or f"see: citadel-llm logs {name}"
                return service.model_copy(update={"reason": f"requires {name}, which failed: {why}"})
        return service

    async def _job(self, systemd: "Systemd", verb: str, name: str) -> None:
        from hxp_enterprise_llm.control.service import state_of
        from hxp_enterprise_llm.settings.errors import JobFailed, NotRunning

        unit = unit_name(name)
        before = await systemd.properties(unit)
        told = self._told(name, before)
        if verb == "Reload" and before.get("ActiveState") not in ("active", "reloading"):
            raise NotRunning(f"{name} is {state_of(before, told)}; start it with: citadel-llm start {name}")
        if verb != "Stop" and before.get("NeedDaemonReload"):
            # systemd takes the limits from the file as it last read it; everything else is read at the start.
            await systemd.call("Reload")
        if verb in ("Start", "Restart") and before.get("ActiveState") == "failed":
            # The limit on consecutive starts is meant for unattended restarts.
            await systemd.call("ResetFailedUnit", "s", unit)
        result = await systemd.job(verb, unit)
        if verb == "Reload":
            return await self._reloaded(systemd, name, result, told.last_reload if told else None)
        if result == "done":
            # An active unit, which systemd need not start, may be replacing its engine.
            service = await self._until_settled(systemd, name) if verb == "Start" else None
            if service and not service.ready:
                raise JobFailed(f"{name}: {service.state} again: {service.reason}", service.exit_status)
            return
        (service,) = await self._look(systemd, [name])
        why = service.reason or f"see: journalctl -u {unit_name(name)}"
        raise JobFailed(f"{name}: {verb.lower()} {result}: {why}", service.exit_status)

    async def _reloaded(self, systemd: "Systemd", name: str, result: str, before: "LastReload | None") -> None:
        """Raises JobFailed unless a reload took effect. systemd knows its end, the main process its outcome."""
        from hxp_enterprise_llm.protocol.state import ReloadOutcome
        from hxp_enterprise_llm.settings.errors import ExitStatus, JobFailed

        told = self._told(name, await systemd.properties(unit_name(name)))
        reload = told.last_reload if told and told.last_reload != before else None
        if reload and reload.outcome is ReloadOutcome.REFUSED:
            raise JobFailed(f"{name}: reload refused: {reload.reason}", ExitStatus.CONFIG)
        if reload and reload.outcome is ReloadOutcome.REVERTED:
            why = "the server could not start with the new settings; still serving with the old ones"
            raise JobFailed(f"{name}: reload failed: {why}: {reload.reason}", ExitStatus.CONFIG)
        if result != "done":
            raise JobFailed(f"{name}: reload {result}; see: journalctl -u {unit_name(name)}")
        if reload and reload.waited:
            log.warning("%s: requests waited during the reload: %s", name, reload.waited)

    async def _until_settled(
        self, systemd: "Systemd", name: str, look: "Callable[[Service], None]" = lambda _: None
    ) -> "Service":
        """Wait until an instance is ready, or neither runs nor is about to run; returns the instance."""
        async for _ in systemd.changes(unit_name(name)):
            (service,) = await self._look(systemd, [name])
            look(service)
            if service.ready or not (service.running or service.queued):
                return service
        raise AssertionError("changes() ends with an error only")
