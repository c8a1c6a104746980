"""ServiceManager against a systemd that is a parameter."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
from dbus_fast import Variant

from hxp_enterprise_llm.control.service import State
from hxp_enterprise_llm.control.service_manager import ServiceManager
from hxp_enterprise_llm.control.systemd import Systemd, unit_path
from hxp_enterprise_llm.settings.errors import ExitStatus, JobFailed, NoSuchInstance, NotRunning

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


class FakeSystemd:
    """Answers from a table of properties and keeps what it was asked to do."""

    def __init__(self, results: dict[str, str] | None = None, **properties: Any) -> None:
        self.results = results or {}
        self.values: dict[str, Any] = {"ActiveState": "inactive", "SubState": "dead", "MemoryCurrent": 2**64 - 1}
        self.values |= properties
        self.of: dict[str, dict[str, Any]] = {}
        self.running: list[str] = []
        self.later: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def properties(self, unit: str) -> dict[str, Any]:
        enabled = "enabled" if unit == "citadel-llm@a.service" else "disabled"
        return self.values | {"UnitFileState": enabled} | self.of.get(unit, {})

    async def properties_of(self, units: list[str], target: str) -> list[dict[str, Any]]:
        assert target == "citadel-llm.target"
        return [await self.properties(unit) for unit in units]

    async def active(self, pattern: str) -> list[str]:
        return self.running

    async def job(self, verb: str, unit: str) -> str:
        self.asked.append((verb, unit))
        return self.results.get(unit, "done")

    async def changes(self, unit: str) -> AsyncIterator[None]:
        for state in self.later:
            self.values |= state
            yield
        while True:
            yield

    async def call(self, member: str, *words: Any) -> None:
        self.asked.append((member, str(words[-1]) if words else ""))

    async def enable(self, units: list[str]) -> None:
        self.asked += [("enable", unit) for unit in units]


def manager(root: Root, systemd: FakeSystemd) -> ServiceManager:
    return ServiceManager(root=str(root), connect=lambda: systemd)  # type: ignore[arg-type, return-value]


def test_every_instance_is_listed_with_its_configuration_running_or_not(root: Root) -> None:
    root.instance("a", GOOD)
    root.instance("b", GOOD + "PORT=none\n")
    found = manager(root, FakeSystemd()).list_services()
    assert [(service.name, service.enabled, service.state) for service in found] == [
        ("a", True, State.STOPPED),
        ("b", False, State.STOPPED),
    ]
    assert found[0].config and found[0].config.port == 11500
    assert found[1].config is None and "PORT=none is refused" in found[1].faults[-1]
    assert found[0].memory_bytes is None


def test_the_figures_of_a_running_one(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(
        ActiveState="active", SubState="running", MainPID=7, NRestarts=2, MemoryCurrent=10, MemoryMax=20,
        CPUQuotaPerSecUSec=1_500_000, TasksCurrent=3, TasksMax=1000, StateChangeTimestamp=1_000_000, StatusText="Ready",
    )  # fmt: skip
    service = manager(root, systemd).status("a")
    assert (service.state, service.running, service.pid, service.restarts) == (State.READY, True, 7, 2)
    assert (service.memory_bytes, service.memory_limit_bytes, service.cpu_limit_cores) == (10, 20, 1.5)
    assert service.since and service.since.timestamp() == 1
    assert service.reason == "Ready"
    assert not service.queued


def test_a_stopped_one_may_have_a_start_waiting(root: Root) -> None:
    root.instance("a", GOOD)
    service = manager(root, FakeSystemd(Job=(7, "/org/freedesktop/systemd1/job/7"))).status("a")
    assert (service.running, service.queued) == (False, True)


def test_the_limits_of_one_that_systemd_does_not_hold_are_those_of_its_settings(root: Root) -> None:
    root.instance("a", GOOD + "MEMORY_LIMIT_GB=0.5\nCPU_CORES=1.5\nMAX_TASKS=99\n")
    service = manager(root, FakeSystemd()).status("a")
    assert (service.memory_limit_bytes, service.cpu_limit_cores, service.tasks_limit) == (2**29, 1.5, 99)
    assert manager(root, FakeSystemd(MemoryMax=2**64 - 1)).status("a").memory_limit_bytes is None


def test_only_units_that_systemd_holds_are_asked_for() -> None:
    class Recorder(Systemd):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        async def call(self, member: str, *_: Any, path: str = "", **__: Any) -> list[Any]:
            self.asked.append(f"{member} {path.rpartition('/')[2]}".strip())
            unit = "citadel-llm@a.service"
            answers: dict[str, list[Any]] = {
                "ListUnitsByPatterns": [[[unit, "", "loaded", "active"]]],
                "Get": [Variant("as", [unit, "citadel-llm@b.service"])],
                "GetAll": [{"ActiveState": Variant("s", "active")}],
            }
            return answers[member]

    systemd = Recorder()
    units = [f"citadel-llm@{name}.service" for name in "abc"]
    found = asyncio.run(systemd.properties_of(units, "citadel-llm.target"))
    idle = {"ActiveState": "inactive", "SubState": "dead"}
    enabled, disabled = idle | {"UnitFileState": "enabled"}, idle | {"UnitFileState": "disabled"}
    assert found == [{"ActiveState": "active"}, enabled, disabled]
    assert systemd.asked[2:] == [f"GetAll {unit_path(units[0]).rpartition('/')[2]}"]


def test_one_that_runs_without_a_file_is_seen_and_can_be_stopped(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="active", SubState="running")
    systemd.running = ["citadel-llm@lost.service"]
    found = manager(root, systemd).list_services()
    assert [service.name for service in found] == ["a", "lost"]
    assert "does not exist" in found[1].faults[0]
    manager(root, systemd).stop("lost")
    assert systemd.asked == [("Stop", "citadel-llm@lost.service")]
    with pytest.raises(NoSuchInstance):
        manager(root, systemd).stop("other")


def test_a_bad_host_file_hides_nothing(root: Root) -> None:
    root.instance("a", GOOD)
    root.host("HEALTH_PORT=abc\n")
    (service,) = manager(root, FakeSystemd(ActiveState="active", SubState="running")).list_services()
    assert service.running and "HEALTH_PORT=abc is refused" in service.faults[0]


def test_jobs_go_to_the_units(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="active", SubState="running")
    instances = manager(root, systemd)
    instances.start("a")
    instances.reload("a")
    instances.restart("a")
    instances.stop("a")
    instances.enable("a")
    unit = "citadel-llm@a.service"
    assert systemd.asked == [("Start", unit), ("Reload", unit), ("Restart", unit), ("Stop", unit), ("enable", unit)]


def test_an_edited_file_counts_for_limits_too(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="active", SubState="running", NeedDaemonReload=True)
    for verb in ("start", "restart", "reload"):
        getattr(manager(root, systemd), verb)("a")
        assert [word for word, _ in systemd.asked] == ["Reload", verb.capitalize()]
        systemd.asked.clear()


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_who_starts_a_failed_one_does_not_meet_the_limit_of_starts(root: Root, verb: str) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="failed", SubState="failed")
    systemd.later = [{"ActiveState": "active", "SubState": "running"}]
    getattr(manager(root, systemd), verb)("a")
    assert [word for word, _ in systemd.asked] == ["ResetFailedUnit", verb.capitalize()]


def test_one_that_replaces_its_engine_is_not_ready_and_a_start_waits(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="active", SubState="running", StatusText="Recovering: the engine ended")
    service = manager(root, systemd).status("a")
    assert (service.state, service.ready, service.running, service.up) == (State.RESTARTING, False, True, False)
    systemd.later = [{"StatusText": text} for text in ("Importing vLLM", "Loading /m", "Ready: a")]
    manager(root, systemd).start("a")
    assert systemd.values["StatusText"] == "Ready: a"
    systemd.later = [{"StatusText": "Recovering: again"}, {"ActiveState": "failed", "SubState": "failed"}]
    with pytest.raises(JobFailed, match="a: failed again: Recovering: again"):
        manager(root, systemd).start("a")


def test_a_reload_says_what_it_was_for(root: Root) -> None:
    root.instance("a", GOOD)
    unit = "citadel-llm@a.service"
    with pytest.raises(NotRunning, match="a is stopped; start it with: citadel-llm start a") as caught:
        manager(root, FakeSystemd()).reload("a")
    assert caught.value.exit_status == ExitStatus.NOT_RUNNING
    said = "Ready: with the old settings; the reload was refused: PORT"
    systemd = FakeSystemd({unit: "failed"}, ActiveState="active", SubState="running", StatusText=said)
    with pytest.raises(JobFailed, match="the reload was refused: PORT") as failed:
        manager(root, systemd).reload("a")
    assert failed.value.exit_status == ExitStatus.CONFIG


def test_a_reload_that_systemd_holds_for_done_may_be_in_vain_or_not_beside(
    root: Root, caplog: pytest.LogCaptureFixture
) -> None:
    root.instance("a", GOOD)
    said = "Ready: with the old settings; the server could not start with the new ones: the cache is too small"
    with pytest.raises(JobFailed, match=f"a: reload in vain: {said}") as failed:
        manager(root, FakeSystemd(ActiveState="active", SubState="running", StatusText=said)).reload("a")
    assert failed.value.exit_status == ExitStatus.CONFIG
    said = "Ready: a, started in 1 s; requests waited meanwhile: two servers do not fit"
    manager(root, FakeSystemd(ActiveState="active", SubState="running", StatusText=said)).reload("a")
    assert caplog.messages == ["a: requests waited while it was reloaded: two servers do not fit"]


def test_one_that_was_killed_is_not_described_by_its_last_words(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(
        ActiveState="activating", SubState="auto-restart", Result="signal", StatusText="Ready: a on http://x"
    )
    assert manager(root, systemd).status("a").reason == (
        "the main process was ended (signal); systemd starts it again after RESTART_SEC"
    )


def test_a_failed_job_says_what_the_unit_says(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd({"citadel-llm@a.service": "failed"}, StatusText="Failed: PORT is missing", ExecMainStatus=78)
    with pytest.raises(JobFailed, match="a: start failed: Failed: PORT is missing") as failed:
        manager(root, systemd).start("a")
    assert failed.value.exit_status == ExitStatus.CONFIG


def test_enabling_refused_settings_is_done_and_a_warning(root: Root, caplog: pytest.LogCaptureFixture) -> None:
    root.instance("a", GOOD)
    root.instance("b", GOOD + "PORT=none\n")
    systemd = FakeSystemd()
    manager(root, systemd).enable("a", "b")
    assert systemd.asked == [("enable", "citadel-llm@a.service"), ("enable", "citadel-llm@b.service")]
    (warning,) = caplog.messages
    assert warning.startswith("b is enabled, and will not start like this: ") and "PORT=none is refused" in warning


def test_one_that_waits_for_a_failed_one_says_so(root: Root) -> None:
    root.instance("a", GOOD)
    root.instance("b", GOOD + "REQUIRES=a\n")
    systemd = FakeSystemd()
    systemd.of["citadel-llm@a.service"] = {"ActiveState": "failed", "StatusText": "Failed: the port is taken"}
    said = "needs a, which failed: the port is taken"
    assert manager(root, systemd).status("b").reason == said
    assert [one.reason for one in manager(root, systemd).list_services()] == ["Failed: the port is taken", said]
    systemd.of["citadel-llm@b.service"] = {"ActiveState": "active", "StatusText": "Ready"}
    assert manager(root, systemd).status("b").reason == "Ready"


def test_an_unknown_instance_is_named_with_those_that_there_are(root: Root) -> None:
    root.instance("a", GOOD)
    for call in ("status", "start", "enable"):
        with pytest.raises(NoSuchInstance, match="there is no instance 'b'; citadel-llm list"):
            getattr(manager(root, FakeSystemd()), call)("b")
