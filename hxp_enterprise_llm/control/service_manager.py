"""Many instances from outside (`ServiceManager`), and one from inside (`python -m` this package)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from hxp_enterprise_llm.settings.units import TARGET, instance_of, unit_name

if TYPE_CHECKING:
    from hxp_enterprise_llm.control.service import Service
    from hxp_enterprise_llm.control.systemd import Systemd
    from hxp_enterprise_llm.settings.host import ServiceManagerConfig

log = logging.getLogger(__name__)

T = TypeVar("T")


class ServiceManager:
    """The instances of this host: what they are, and what is done with them through systemd.

    Reading needs no privilege. `root` is the file root that the settings are read from; `connect` makes the connection
    to systemd. Every method raises CitadelError: NoSuchInstance, SettingsRefused, NotPermitted, SystemdUnreachable or
    JobFailed, whose message ends in what the unit itself says.
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
        """The host-wide settings. Read late: what runs can be seen and stopped without them."""
        from hxp_enterprise_llm.settings.host import ServiceManagerConfig

        if self._config is None:
            self._config = ServiceManagerConfig.load(self._root)
        return self._config

    def list_services(self) -> "list[Service]":
        """Every instance that has a settings file, running or not, and every one that runs without, by name."""
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
        """Wait until an instance is ready or neither runs nor is on its way, and return what it then is.

        `look` is called with every change that systemd tells of. Raises TimeoutError after `timeout` seconds.
        """
        self._require(name)
        return self._with_systemd(lambda systemd: asyncio.wait_for(self._until_settled(systemd, name, look), timeout))

    def start(self, *names: str) -> None:
        """Start instances, those that they need before them, and return once all are ready."""
        from hxp_enterprise_llm.control.order import in_order

        self._require(*names)
        self._with_systemd(
            lambda systemd: in_order(
                names, self._root, lambda name: self._job(systemd, "Start", name), and_required=True
            )
        )

    def stop(self, *names: str) -> None:
        """Stop instances, those that need them first."""
        from hxp_enterprise_llm.control.order import in_order

        self._require(*names)
        self._with_systemd(
            lambda systemd: in_order(names, self._root, lambda name: self._job(systemd, "Stop", name), reverse=True)
        )

    def restart(self, *names: str) -> None:
        """Restart instances, one after another in the order of their dependencies."""
        self._each("Restart", names)

    def reload(self, *names: str) -> None:
        """Have running instances take in their settings anew."""
        self._each("Reload", names)

    def enable(self, *names: str) -> None:
        """Make instances start at boot, with citadel-llm.target.

        As with systemctl, whether they can start is another question: settings that are refused are a warning.
        """
        from hxp_enterprise_llm.settings import config
        from hxp_enterprise_llm.settings.errors import SettingsRefused

        self._require(*names)
        self._with_systemd(lambda systemd: systemd.enable([unit_name(name) for name in names]))
        for name in names:
            try:
                config.load(name, self._root)
            except SettingsRefused as error:
                log.warning("%s is enabled, and will not start like this: %s", name, error)

    def disable(self, *names: str) -> None:
        """Make instances not start at boot; what runs goes on."""
        self._require(*names)
        self._with_systemd(lambda systemd: systemd.disable([unit_name(name) for name in names]))

    def settings_changed(self) -> None:
        """Have systemd read the settings files again, as `systemctl daemon-reload`."""
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
        # Its file is gone, and it runs on.
        running = self._with_systemd(lambda systemd: systemd.active(unit_name("*")))
        for name in without:
            if unit_name(name) not in running:
                raise NoSuchInstance(f"there is no instance {name!r}; citadel-llm list shows those that there are")

    def _with_systemd(self, action: "Callable[[Systemd], Awaitable[T]]") -> T:
        async def run() -> T:
            async with self._connect() as systemd:
                return await action(systemd)

        return asyncio.run(run())

    async def _look(self, systemd: "Systemd", names: Sequence[str]) -> "list[Service]":
        from hxp_enterprise_llm.control.service import Service
        from hxp_enterprise_llm.settings import config
        from hxp_enterprise_llm.settings.errors import SettingsRefused

        def look(name: str, properties: dict[str, Any]) -> Service:
            try:
                settings, warnings = config.load(name, self._root)
            except SettingsRefused as error:
                return Service.seen(name, None, tuple(map(str, error.faults)), properties)
            return Service.seen(name, settings, tuple(map(str, warnings)), properties)

        units = [unit_name(name) for name in names]
        if len(units) == 1:
            found = [await systemd.properties(units[0])]
        else:
            found = await systemd.properties_of(units, TARGET)
        services = [look(name, properties) for name, properties in zip(names, found, strict=True)]
        return [await self._with_what_it_lacks(systemd, service) for service in services]

    async def _with_what_it_lacks(self, systemd: "Systemd", service: "Service") -> "Service":
        """A stopped instance with the failure of what it requires as its reason: systemd says nothing of that."""
        from hxp_enterprise_llm.control.service import State

        if service.state is not State.STOPPED or service.config is None:
            return service
        for needed in service.config.requires:
            properties = await systemd.properties(unit_name(needed))
            if properties.get("ActiveState") == "failed":
                said = properties.get("StatusText") or f"see: citadel-llm logs {needed}"
                reason = f"needs {needed}, which failed: {said.removeprefix('Failed: ')}"
                return service.model_copy(update={"reason": reason})
        return service

    async def _job(self, systemd: "Systemd", verb: str, name: str) -> None:
        from hxp_enterprise_llm.control.service import State
        from hxp_enterprise_llm.settings.errors import ExitStatus, JobFailed, NotRunning
        from hxp_enterprise_llm.system.notify import RELOAD_REFUSED, WAITED, WENT_BACK

        unit = unit_name(name)
        before = await systemd.properties(unit)
        if verb == "Reload" and before.get("ActiveState") not in ("active", "reloading"):
            state = State.of(before.get("ActiveState", ""), before.get("SubState", ""))
            raise NotRunning(f"{name} is {state}; start it with: citadel-llm start {name}")
        if verb != "Stop" and before.get("NeedDaemonReload"):
            # The limits are those of the file when systemd last looked, the rest is read at the start.
            await systemd.call("Reload")
        if verb in ("Start", "Restart") and before.get("ActiveState") == "failed":
            # Who starts it has seen that it failed: the limit of starts in a row is for those that nobody looks at.
            await systemd.call("ResetFailedUnit", "s", unit)
        result = await systemd.job(verb, unit)
        if result == "done":
            # One that systemd held for started may be replacing its engine.
            service = await self._until_settled(systemd, name) if verb == "Start" else None
            if service and not service.ready:
                raise JobFailed(f"{name}: {service.state} again: {service.reason}", service.exit_status)
        properties: dict[str, Any] = await systemd.properties(unit)
        said = str(properties.get("StatusText") or f"see: journalctl -u citadel-llm@{name}")
        refused = verb == "Reload" and said.startswith((RELOAD_REFUSED, WENT_BACK))
        if result == "done" and not refused:
            if verb == "Reload" and (why := said.partition(WAITED)[2]):
                log.warning("%s: requests waited while it was reloaded: %s", name, why)
            return
        status = ExitStatus.CONFIG if refused else properties.get("ExecMainStatus")
        raise JobFailed(f"{name}: {verb.lower()} {'in vain' if refused else result}: {said}", status)

    async def _until_settled(
        self, systemd: "Systemd", name: str, look: "Callable[[Service], None]" = lambda _: None
    ) -> "Service":
        """An instance once it is ready, or neither runs nor is on its way."""
        async for _ in systemd.changes(unit_name(name)):
            (service,) = await self._look(systemd, [name])
            look(service)
            if service.ready or not (service.running or service.queued):
                return service
        raise AssertionError("changes() ends with an error only")
