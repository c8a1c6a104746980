"""The restarts of an upgrade, with a systemd that propagates restarts and stops as the real one does."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.control.upgrade import Upgrade, interrupt, permitted
from hxp_enterprise_llm.settings.errors import JobFailed
from hxp_enterprise_llm.settings.units import MONITOR, instance_of, log_unit_name, unit_name

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


class FakeSystemd:
    """Running units with a counter of their starts, and the requirements of each model."""

    def __init__(self, running: list[str], requires: dict[str, list[str]] | None = None) -> None:
        self.runs = {unit_name(name): 1 for name in running} | {MONITOR: 1}
        self.requires = requires or {}
        self.state = dict.fromkeys(self.runs, "active")
        self.masked: set[str] = set()
        self.fails: set[str] = set()
        self.done: list[str] = []
        self.queued: list[str] = []
        self.never_ends = ""

    async def active(self, pattern: str) -> list[str]:
        assert pattern == "citadel-llm*.service"
        return [unit for unit, state in self.state.items() if state != "inactive"]

    async def properties(self, unit: str) -> dict[str, Any]:
        load = "masked" if unit in self.masked else "loaded"
        return {
            "ActiveState": self.state.get(unit, "inactive"),
            "LoadState": load,
            "InvocationID": bytes([self.runs.get(unit, 0)]),
        }

    async def call(self, member: str, signature: str, unit: str, *_: str) -> list[Any]:
        await asyncio.sleep(0)
        if member == "StartUnit":
            self.queued.append(unit)
        return []

    async def job(self, verb: str, unit: str) -> str:
        name = instance_of(unit) or unit
        self.done.append(f"{verb} {name}")
        if unit == self.never_ends:
            await asyncio.Event().wait()
        if unit in self.fails:
            raise JobFailed(f"{verb}Unit: no")
        if verb == "Stop":
            self.state[unit] = "inactive"
        else:
            self._run(unit)
        for other, needs in self.requires.items():
            if name in needs and self.state.get(unit_name(other)) == "active":
                if verb == "Stop":
                    self.state[unit_name(other)] = "inactive"
                else:
                    self._run(unit_name(other))
        return "done"

    def _run(self, unit: str) -> None:
        self.state[unit] = "active"
        self.runs[unit] = self.runs.get(unit, 0) + 1


class Host:
    """A file root whose running models an upgrade restarts."""

    def __init__(self, root: Root, **settings: str) -> None:
        self.root = root
        self.systemd = FakeSystemd(list(settings))
        for name, text in settings.items():
            self.file(name, text)
        self.forbidden: set[str] = set()
        self.bad: set[str] = set()
        self.said: list[str] = []

    def file(self, name: str, text: str) -> None:
        self.root.instance(name, GOOD + text)
        if text.startswith("REQUIRES="):
            self.systemd.requires[name] = text.strip().removeprefix("REQUIRES=").split(",")

    def upgrade(self) -> None:
        asyncio.run(self.coroutine())

    async def coroutine(self) -> None:
        await Upgrade(
            self.systemd,  # type: ignore[arg-type]
            str(self.root),
            lambda unit: unit not in self.forbidden,
            lambda name, running: [Finding(name, "bad")] if name in self.bad else [],
            self.said.append,
        ).run()

    def restarted(self) -> set[str]:
        return {instance_of(unit) or "monitor" for unit, run in self.systemd.runs.items() if run > 1}


def test_each_model_is_restarted_once_and_the_monitor_last(root: Root) -> None:
    host = Host(root, zulu="", alpha="REQUIRES=zulu\n", bravo="AFTER=zulu\n")
    host.upgrade()
    assert host.systemd.done == [
        "Stop alpha", "TryRestart zulu", "Start alpha", "TryRestart bravo", f"TryRestart {MONITOR}",
    ]  # fmt: skip
    assert set(host.systemd.runs.values()) == {2}
    assert not host.said


def test_stopped_dependents_start_before_the_next_model_restarts(root: Root) -> None:
    host = Host(root, b="", c="", z="REQUIRES=b\n", y="REQUIRES=z\n")
    host.upgrade()
    assert host.systemd.done[:6] == ["Stop y", "Stop z", "TryRestart b", "Start z", "Start y", "TryRestart c"]
    assert set(host.systemd.runs.values()) == {2}


def test_stopped_units_are_not_started(root: Root) -> None:
    host = Host(root, a="", b="REQUIRES=a\n")
    host.file("idle", "REQUIRES=a\n")
    host.systemd.state[unit_name("b")] = "deactivating"
    host.systemd.state[MONITOR] = "inactive"
    host.upgrade()
    assert host.systemd.done == ["TryRestart a"]


def test_model_that_cannot_restart_keeps_running_with_requirements(root: Root) -> None:
    host = Host(root, a="", b="REQUIRES=a\n", c="REQUIRES=b\n", d="")
    host.bad = {"c"}
    host.upgrade()
    assert host.restarted() == {"d", "monitor"}
    assert host.said == [
        "c would not start again and is left as it is; see: citadel-llm check c",
        "until they are restarted, these units run the old version: "
        "citadel-llm@a.service citadel-llm@b.service citadel-llm@c.service",
    ]


def test_model_keeps_running_if_a_requirement_cannot_start(root: Root) -> None:
    host = Host(root, a="", b="REQUIRES=a\n", c="REQUIRES=broken\n", d="REQUIRES=missing\n")
    host.file("broken", "")
    host.systemd.masked = {unit_name("a")}
    host.bad = {"broken", "missing"}
    host.upgrade()
    assert host.restarted() == {"monitor"}
    seen = " ".join(host.said)
    assert seen.count("citadel-llm@a.service, which is masked") == 2
    assert "check broken" in seen and "check missing" in seen


def test_exception_in_a_check_stops_no_model(root: Root) -> None:
    host = Host(root, a="")

    def broken(name: str, running: bool) -> list[Finding]:
        raise RuntimeError(name)

    asyncio.run(Upgrade(host.systemd, str(root), lambda _: True, broken, host.said.append).run())  # type: ignore[arg-type]
    assert host.restarted() == {"monitor"}


def test_models_in_a_dependency_cycle_keep_running(root: Root) -> None:
    host = Host(root, a="REQUIRES=b\n", b="AFTER=a\n", c="", z="")
    host.file("a", "REQUIRES=b,z\n")
    host.upgrade()
    assert host.restarted() == {"c", "monitor"}
    assert "check a" in host.said[0]


def test_followers_of_the_journal_are_restarted_after_the_models(root: Root) -> None:
    host = Host(root, a="")
    follower = log_unit_name("a")
    host.systemd.runs[follower], host.systemd.state[follower] = 1, "active"
    host.upgrade()
    assert host.systemd.done == ["TryRestart a", f"TryRestart {MONITOR}", f"TryRestart {follower}"]
    assert not host.said


def test_policy_against_restarts_keeps_models_and_monitor(root: Root) -> None:
    host = Host(root, a="", b="REQUIRES=a\n", c="")
    host.forbidden = {unit_name("b"), MONITOR}
    host.upgrade()
    assert host.restarted() == {"c"}
    assert host.said == [f"until they are restarted, these units run the old version: {MONITOR} "
                         "citadel-llm@a.service citadel-llm@b.service"]  # fmt: skip


@pytest.mark.parametrize("line", ["CITADEL_RESTART_ON_UPGRADE=no\n", "HEALTH_PORT=no\n"])
def test_host_setting_disables_restarts_of_models(root: Root, line: str) -> None:
    root.host(line)
    host = Host(root, a="")
    host.upgrade()
    assert host.restarted() == {"monitor"}


def test_failed_restart_does_not_stop_the_other_restarts(root: Root) -> None:
    host = Host(root, a="", b="")
    host.systemd.fails = {unit_name("a")}
    host.upgrade()
    assert host.restarted() == {"b", "monitor"}
    assert "citadel-llm@a.service did not start" in host.said[0]


def test_upgrade_interrupted_repeatedly_starts_stopped_models_again(root: Root) -> None:
    host = Host(root, zulu="", alpha="REQUIRES=zulu\n")
    host.systemd.never_ends = unit_name("zulu")

    async def interrupted() -> None:
        task = asyncio.create_task(host.coroutine())
        while "TryRestart zulu" not in host.systemd.done:
            await asyncio.sleep(0)
        while not task.done():
            interrupt(task)
            await asyncio.sleep(0)

    asyncio.run(interrupted())
    assert host.systemd.queued == [unit_name("alpha")]


def test_restarts_are_permitted_without_a_policy(tmp_path: Path) -> None:
    assert permitted(MONITOR, tmp_path / "missing")
