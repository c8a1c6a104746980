"""After an upgrade of the package: restart the running models one after another, so that they run the new version.

The package's postinst runs this as root (`python -I -m hxp_enterprise_llm.control.upgrade`) once systemd has read the
new units. Until its turn, each model still runs the old version from memory, while its files are already replaced.
docs/lifecycle.md describes what an upgrade promises.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.checks import start
from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.control.systemd import Systemd
from hxp_enterprise_llm.settings.errors import CitadelError, DependencyCycle, JobFailed, SettingsRefused
from hxp_enterprise_llm.settings.grammar import printable_line
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.order import dependencies, order, with_required
from hxp_enterprise_llm.settings.units import MONITOR, instance_of, is_log_unit, unit_name
from hxp_enterprise_llm.system.processes import run

DONE, INTERRUPTED = 0, 130
"""Exit statuses. postinst fails only after an interruption, so that `dpkg --configure -a` restarts the rest."""
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_SEC = 30.0
FORBIDDEN = 101
"""Exit status of policy-rc.d if packages may not restart a unit (invoke-rc.d(8))."""


def permitted(unit: str, policy: Path = POLICY) -> bool:
    """Whether the administrator's policy-rc.d allows packages to restart a unit.

    deb-systemd-invoke asks the same question, but does not start a model again that is not enabled.
    """
    if not os.access(policy, os.X_OK):
        return True
    # Through a shell, as deb-systemd-invoke does: the policy may be a script without an interpreter line.
    status, _ = run(["/bin/sh", "-c", '"$0" "$1" restart', str(policy), unit], POLICY_SEC)
    return status != FORBIDDEN


class Upgrade:
    """The units that run the old version, and their restarts.

    `root` is the file root of the settings. `permitted` tells whether a unit may be restarted; `findings` returns the
    findings about an instance (`checks.start.findings`). `say` receives sentences for the administrator.
    """

    def __init__(
        self,
        systemd: Systemd,
        root: str = "/",
        permitted: Callable[[str], bool] = permitted,
        findings: Callable[[str, bool], list[Finding]] = start.findings,
        say: Callable[[str], None] = print,
    ) -> None:
        self._systemd = systemd
        self._root = root
        self._permitted = permitted
        self._findings = findings
        self._say = say
        known = dependencies(root)
        requires = {name: needs for name, (needs, _) in known.items()}
        self._requires = {name: with_required([name], requires) for name in requires}
        self._after = {name: earlier | self._requires[name] - {name} for name, (_, earlier) in known.items()}

    async def run(self) -> None:
        """Restart the running units that may be restarted, first the models, then the monitor and the log units.

        Reports the units that still run the old version. Raises SystemdUnreachable. If it is cancelled, it first makes
        systemd start each model that it has stopped.
        """
        before = await self._running()
        models = [name for unit in before if (name := instance_of(unit))]
        if self._wanted():
            await self._restart(await self._restartable(models))
        for unit in before:
            if not instance_of(unit) and self._permitted(unit):
                await self._job("TryRestart", unit)
        now = await self._running()
        if old := sorted(unit for unit in before if now.get(unit) == before[unit]):
            self._say(f"until they are restarted, these units run the old version: {' '.join(old)}")

    async def _running(self) -> dict[str, object]:
        """Our units that are running or about to run, each with the identifier of its run."""
        found = {}
        for unit in await self._systemd.active("citadel-llm*.service"):
            properties = await self._systemd.properties(unit)
            ours = unit == MONITOR or instance_of(unit) or is_log_unit(unit)
            if ours and properties["ActiveState"] not in ("deactivating", "inactive"):
                found[unit] = properties["InvocationID"]
        return found

    def _wanted(self) -> bool:
        try:
            return ServiceManagerConfig.load(self._root).citadel_restart_on_upgrade
        except SettingsRefused:
            self._say("no model is restarted, because the settings of the host are refused; see: citadel-llm check")
            return False

    async def _restartable(self, models: Sequence[str]) -> list[str]:
        """Those of `models` that would start again, in the order of their restarts.

        A model that would not start again must not be stopped, and neither must the models that it requires.
        """
        restartable: list[str] = []
        candidates = self._in_order(models)
        for name in reversed(candidates):
            if not self._permitted(unit_name(name)):
                continue
            if see := await self._obstacle(name):
                self._say(f"{name} would not start again and is left as it is; see: {see}")
            elif self._requiring(name, models) <= set(restartable):
                restartable.insert(0, name)
        return restartable

    def _in_order(self, models: Sequence[str]) -> list[str]:
        """`models` without those in a dependency cycle, for which there is no order."""
        names = set(models)
        while True:
            try:
                return order(sorted(names), {name: sorted(self._after.get(name, set()) & names) for name in names})
            except DependencyCycle as error:
                cycle = sorted(set(error.cycle))
                self._say(f"{' '.join(cycle)}: left as they are; see: citadel-llm check {cycle[0]}")
                names -= set(cycle)

    def _requiring(self, name: str, models: Sequence[str]) -> set[str]:
        """Those of `models` that require an instance, directly or indirectly."""
        return {other for other in models if other != name and name in self._requires.get(other, ())}

    async def _obstacle(self, name: str) -> str | None:
        """Where to see why an instance, or a required instance that does not run, would not start again."""
        for needed in [name, *sorted(self._requires.get(name, {name}) - {name})]:
            properties = await self._systemd.properties(unit_name(needed))
            if properties.get("LoadState") == "masked":
                # systemd refuses to start a unit that requires a masked unit, even if that unit is running.
                return f"systemctl status {unit_name(needed)}, which is masked"
            if needed != name and _up(properties):
                continue
            try:
                found = self._findings(needed, needed == name)
            except Exception:
                # A check that fails unexpectedly does not show that a start would succeed.
                return f"citadel-llm check {needed}"
            if any(finding.fatal for finding in found):
                return f"citadel-llm check {needed}"
        return None

    async def _restart(self, names: list[str]) -> None:
        """Restart instances one at a time, each after those that it starts after.

        systemd would restart all dependants of an instance together with it, and again in their own turn. So dependants
        are stopped before and started in their turn; a stopped instance is handled before a running one.
        """
        sorter: TopologicalSorter[str] = TopologicalSorter()
        for name in names:
            sorter.add(name, *(self._after.get(name, set()) & set(names)))
        sorter.prepare()
        stopped: set[str] = set()
        due: set[str] = set()
        try:
            while sorter.is_active():
                due |= set(sorter.get_ready())
                name = min(due, key=lambda name: (name not in stopped, name))
                await self._stop(reversed([other for other in names if other in self._requiring(name, names)]), stopped)
                await self._job("Start" if name in stopped else "TryRestart", unit_name(name))
                stopped.discard(name)
                due.remove(name)
                sorter.done(name)
        finally:
            for name in stopped:
                with suppress(CitadelError):
                    await self._systemd.call("StartUnit", "ss", unit_name(name), "replace")

    async def _stop(self, names: Iterable[str], stopped: set[str]) -> None:
        """Stop running instances and add them to `stopped`; one that somebody else stopped must not be started."""
        for name in names:
            if _up(await self._systemd.properties(unit_name(name))):
                stopped.add(name)
                await self._job("Stop", unit_name(name))

    async def _job(self, verb: str, unit: str) -> None:
        """Queue a job, wait for its end, and report a failure."""
        if verb != "Stop":
            # Starts before the upgrade must not count towards StartLimitBurst= of this start.
            with suppress(JobFailed):
                await self._systemd.call("ResetFailedUnit", "s", unit)
        try:
            result = await self._systemd.job(verb, unit)
        except JobFailed as error:
            result = str(error)
        if result != "done" and verb != "Stop":
            self._say(f"{unit} did not start with the new version ({result}); see: systemctl status {unit}")


def _up(properties: Mapping[str, Any]) -> bool:
    return properties.get("ActiveState") in ("active", "activating", "reloading")


def interrupt(upgrade: asyncio.Task[None]) -> None:
    """Cancel the upgrade once: a second signal must not interrupt the start of the models that it has stopped."""
    if not upgrade.cancelling():
        upgrade.cancel()


def main() -> int:
    """Restart all units that an upgrade must restart. A model that fails does not fail the upgrade."""

    def say(text: str) -> None:
        print(f"citadel-llm: {printable_line(text)}", flush=True)

    async def upgrade() -> None:
        task = asyncio.current_task()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            # Under nohup, SIGHUP stays ignored.
            if task and signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, interrupt, task)
        async with Systemd() as systemd:
            await Upgrade(systemd, say=say).run()

    # The checks log their warnings; here only errors that prevent a start matter.
    logging.disable()
    try:
        asyncio.run(upgrade())
    except asyncio.CancelledError:
        say("interrupted; the models that were not restarted run the old version until: dpkg --configure -a")
        return INTERRUPTED
    except Exception as error:
        say(f"the models run the old version until they are restarted, because the restart failed: {error}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
