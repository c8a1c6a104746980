"""ServiceManager with a fake systemd as a parameter."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import pytest
from dbus_fast import Variant

import hxp_enterprise_llm
from hxp_enterprise_llm.control.service import State
from hxp_enterprise_llm.control.service_manager import ServiceManager
from hxp_enterprise_llm.control.systemd import Systemd, unit_path
from hxp_enterprise_llm.protocol.state import LastReload, Phase, ReloadOutcome, StateFile
from hxp_enterprise_llm.settings.errors import ExitStatus, JobFailed, NoSuchInstance, NotRunning

from .conftest import Root

RUN = "0" * 32
"""systemd's ID of the units' current run."""
GOOD = "MODEL=/srv/m\nPORT=11500\n"


class FakeSystemd:
    """Answers from a table of properties and records the calls."""

    def __init__(self, results: dict[str, str] | None = None, **properties: Any) -> None:
        self.results = results or {}
        self.values: dict[str, Any] = {"ActiveState": "inactive", "SubState": "dead", "MemoryCurrent": 2**64 - 1}
        self.values |= properties
        self.of: dict[str, dict[str, Any]] = {}
        self.running: list[str] = []
        self.later: list[dict[str, Any]] = []
        self.then: list[Callable[[], object]] = []
        self.on_job: Callable[[], object] = lambda: None
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
        self.on_job()
        return self.results.get(unit, "done")

    async def changes(self, unit: str) -> AsyncIterator[None]:
        for state in self.later:
            self.values |= state
            yield
        while self.then:
            self.then.pop(0)()
            yield
        while True:
            yield

    async def call(self, member: str, *words: Any) -> None:
        self.asked.append((member, str(words[-1]) if words else ""))

    async def enable(self, units: list[str]) -> None:
        self.asked += [("enable", unit) for unit in units]


class Running(FakeSystemd):
    """A systemd whose units are active."""

    def __init__(self, results: dict[str, str] | None = None, **properties: Any) -> None:
        active = {"ActiveState": "active", "SubState": "running", "InvocationID": RUN}
        super().__init__(results, **active | properties)


def state_file(root: Root, name: str) -> StateFile:
    """The state file of an instance's current run."""
    directory = root.path / "run/citadel-llm" / name
    directory.mkdir(parents=True)
    return StateFile(directory, RUN)


def manager(root: Root, systemd: FakeSystemd) -> ServiceManager:
    return ServiceManager(root=str(root), connect=lambda: systemd)  # type: ignore[arg-type, return-value]


def test_list_shows_every_instance_with_its_configuration(root: Root) -> None:
    root.instance("a", GOOD)
    root.instance("b", GOOD + "PORT=none\n")
    found = manager(root, FakeSystemd()).list_services()
    assert [(service.name, service.enabled, service.state) for service in found] == [
        ("a", True, State.STOPPED),
        ("b", False, State.STOPPED),
    ]
    assert found[0].config and found[0].config.port == 11500
    assert found[1].config is None and "PORT=none is refused" in found[1].findings[-1]
    assert found[0].memory_bytes is None


def test_status_reports_figures_of_running_instance(root: Root) -> None:
    root.instance("a", GOOD)
    state_file(root, "a").enter(Phase.READY)
    systemd = Running(
        MainPID=7, NRestarts=2, MemoryCurrent=10, MemoryMax=20,
        CPUQuotaPerSecUSec=1_500_000, TasksCurrent=3, TasksMax=1000, StateChangeTimestamp=1_000_000,
    )  # fmt: skip
    service = manager(root, systemd).status("a")
    assert (service.state, service.running, service.pid, service.restarts) == (State.READY, True, 7, 2)
    assert (service.memory_bytes, service.memory_limit_bytes, service.cpu_limit_cores) == (10, 20, 1.5)
    assert service.since and service.since.timestamp() == 1
    assert service.reason == "Ready"
    assert not service.queued


def test_status_shows_queued_start_of_stopped_instance(root: Root) -> None:
    root.instance("a", GOOD)
    service = manager(root, FakeSystemd(Job=(7, "/org/freedesktop/systemd1/job/7"))).status("a")
    assert (service.running, service.queued) == (False, True)


def test_limits_of_unloaded_unit_come_from_its_settings(root: Root) -> None:
    root.instance("a", GOOD + "MEMORY_LIMIT_GB=0.5\nCPU_CORES=1.5\nMAX_TASKS=99\n")
    service = manager(root, FakeSystemd()).status("a")
    assert (service.memory_limit_bytes, service.cpu_limit_cores, service.tasks_limit) == (2**29, 1.5, 99)
    assert manager(root, FakeSystemd(MemoryMax=2**64 - 1)).status("a").memory_limit_bytes is None


def test_only_loaded_units_are_queried() -> None:
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


def test_running_instance_without_settings_file_is_listed_and_stopped(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="active", SubState="running")
    systemd.running = ["citadel-llm@lost.service"]
    found = manager(root, systemd).list_services()
    assert [service.name for service in found] == ["a", "lost"]
    assert "does not exist" in found[1].findings[0]
    manager(root, systemd).stop("lost")
    assert systemd.asked == [("Stop", "citadel-llm@lost.service")]
    with pytest.raises(NoSuchInstance):
        manager(root, systemd).stop("other")


def test_invalid_host_file_hides_no_instance(root: Root) -> None:
    root.instance("a", GOOD)
    root.host("HEALTH_PORT=abc\n")
    (service,) = manager(root, FakeSystemd(ActiveState="active", SubState="running")).list_services()
    assert service.running and "HEALTH_PORT=abc is refused" in service.findings[0]


def test_commands_queue_jobs_for_the_unit(root: Root) -> None:
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


def test_changed_settings_trigger_daemon_reload_before_the_job(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="active", SubState="running", NeedDaemonReload=True)
    for verb in ("start", "restart", "reload"):
        getattr(manager(root, systemd), verb)("a")
        assert [word for word, _ in systemd.asked] == ["Reload", verb.capitalize()]
        systemd.asked.clear()


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_start_of_failed_instance_resets_its_start_limit(root: Root, verb: str) -> None:
    root.instance("a", GOOD)
    systemd = FakeSystemd(ActiveState="failed", SubState="failed")
    systemd.later = [{"ActiveState": "active", "SubState": "running"}]
    getattr(manager(root, systemd), verb)("a")
    assert [word for word, _ in systemd.asked] == ["ResetFailedUnit", verb.capitalize()]


def test_recovering_instance_is_not_ready_and_start_waits(root: Root) -> None:
    root.instance("a", GOOD)
    systemd = Running()
    told = state_file(root, "a")
    told.enter(Phase.RECOVERING, "the engine ended")
    service = manager(root, systemd).status("a")
    assert (service.state, service.ready, service.running, service.up) == (State.RECOVERING, False, True, False)
    assert service.reason == "Recovering: the engine ended"
    systemd.then = [lambda: None, lambda: told.enter(Phase.READY)]
    manager(root, systemd).start("a")
    assert systemd.then == []
    told.enter(Phase.RECOVERING)
    systemd.later = [{"ActiveState": "failed", "SubState": "failed", "Result": "watchdog"}]
    with pytest.raises(JobFailed, match="a: failed again: systemd: watchdog"):
        manager(root, systemd).start("a")


def test_only_a_running_instance_can_be_reloaded(root: Root) -> None:
    root.instance("a", GOOD)
    with pytest.raises(NotRunning, match="a is stopped; start it with: citadel-llm start a") as caught:
        manager(root, FakeSystemd()).reload("a")
    assert caught.value.exit_status == ExitStatus.NOT_RUNNING


@pytest.mark.parametrize(
    ("result", "outcome", "status"),
    [
        # For systemd a reload is done once a server is ready, also a server with the old settings.
        ("done", ReloadOutcome.REVERTED, ExitStatus.CONFIG),
        ("failed", ReloadOutcome.REFUSED, ExitStatus.CONFIG),
        ("failed", None, ExitStatus.FAILED),
        ("timeout", ReloadOutcome.DONE, ExitStatus.FAILED),
        ("done", ReloadOutcome.DONE, None),
        ("done", None, None),
    ],
)
def test_reload_result_follows_the_reported_outcome(
    root: Root, result: str, outcome: ReloadOutcome | None, status: ExitStatus | None
) -> None:
    root.instance("a", GOOD)
    told = state_file(root, "a")
    told.enter(Phase.READY, reload=LastReload(outcome=ReloadOutcome.REFUSED, at=1, reason="an earlier one"))
    systemd = Running({"citadel-llm@a.service": result})
    if outcome:
        ended = LastReload(outcome=outcome, at=2, reason="" if outcome is ReloadOutcome.DONE else "the cache is small")
        systemd.on_job = lambda: told.reloaded(ended)
    if status is None:
        manager(root, systemd).reload("a")
        return
    with pytest.raises(JobFailed) as failed:
        manager(root, systemd).reload("a")
    assert failed.value.exit_status == status
    assert ("the cache is small" in str(failed.value)) is (status == ExitStatus.CONFIG)
    assert "an earlier one" not in str(failed.value)


def test_reload_with_waiting_requests_succeeds_with_a_warning(root: Root, caplog: pytest.LogCaptureFixture) -> None:
    root.instance("a", GOOD)
    told, systemd = state_file(root, "a"), Running()
    ended = LastReload(outcome=ReloadOutcome.DONE, at=2, waited="two servers do not fit")
    systemd.on_job = lambda: told.reloaded(ended)
    manager(root, systemd).reload("a")
    assert caplog.messages == ["a: requests waited during the reload: two servers do not fit"]


def test_a_killed_main_process_is_not_described_by_its_last_phase(root: Root) -> None:
    root.instance("a", GOOD)
    state_file(root, "a").enter(Phase.READY, "a on http://x")
    killed: dict[str, Any] = {"Result": "signal", "ExecMainCode": 2, "ExecMainStatus": 9, "ExecMainExitTimestamp": 1}
    systemd = FakeSystemd(ActiveState="activating", SubState="auto-restart", InvocationID=RUN, **killed)
    service = manager(root, systemd).status("a")
    assert (service.state, service.exit_status) == (State.RESTARTING, 137)
    assert service.reason == "the main process was killed by SIGKILL"


@pytest.mark.parametrize("code", [69, 70, 78])
def test_a_failed_start_has_the_reason_of_the_main_process(root: Root, code: int) -> None:
    root.instance("a", GOOD)
    state_file(root, "a").enter(Phase.FAILED, "PORT is missing")
    failed: dict[str, Any] = {
        "Result": "exit-code",
        "ExecMainCode": 1,
        "ExecMainStatus": code,
        "ExecMainExitTimestamp": 1,
    }
    systemd = FakeSystemd(
        {"citadel-llm@a.service": "failed"}, ActiveState="failed", SubState="failed", InvocationID=RUN, **failed
    )
    with pytest.raises(JobFailed, match="a: start failed: PORT is missing") as caught:
        manager(root, systemd).start("a")
    assert caught.value.exit_status == (ExitStatus.CONFIG if code == ExitStatus.CONFIG else ExitStatus.FAILED)


def test_a_state_of_another_run_is_ignored(root: Root) -> None:
    root.instance("a", GOOD)
    state_file(root, "a").enter(Phase.RECOVERING, "an earlier run")
    systemd = Running(InvocationID="9" * 32)
    service = manager(root, systemd).status("a")
    assert (service.state, service.reason, service.last_failure) == (State.READY, "", None)
    systemd.values["StatusText"] = "Loading"
    assert manager(root, systemd).status("a").reason == "Loading", "systemd's own text, for people"


def test_running_instance_of_an_earlier_version_has_state_of_systemd(root: Root) -> None:
    """After an upgrade that restarts nothing its state.json has neither phase nor invocation."""
    root.instance("a", GOOD)
    earlier = {
        "address": {"scheme": "http", "host": "127.0.0.1", "port": 11777},
        "startup_seconds": 7.9,
        "failures": {"engine-died": 1},
        "last_failure": {"kind": "engine-died", "reason": "it ended", "at": 17e8},
    }
    state_file(root, "a")
    (root.path / "run/citadel-llm/a/state.json").write_text(json.dumps(earlier))
    systemd = Running(StatusText="Recovering: words that no program reads")
    service = manager(root, systemd).status("a")
    assert (service.state, service.ready, service.port, service.startup_seconds) == (State.READY, True, 11777, 7.9)
    assert service.last_failure and service.last_failure.reason == "it ended"
    manager(root, systemd).reload("a")
    systemd.values |= {"ActiveState": "reloading", "SubState": "reload"}
    assert manager(root, systemd).status("a").state is State.RELOADING
    systemd.values |= {"ActiveState": "activating", "SubState": "start"}
    service = manager(root, systemd).status("a")
    assert (service.state, service.port, service.startup_seconds) == (State.STARTING, 11500, None), "a new run"
    died = {"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 70, "ExecMainExitTimestamp": 1}
    systemd.values |= {"ActiveState": "failed", "SubState": "failed", "StatusText": "Failed: it died", **died}
    assert manager(root, systemd).status("a").reason == "Failed: it died"


@pytest.mark.parametrize(
    ("active", "phase", "state"),
    [
        ("active", Phase.READY, State.READY),
        ("active", None, State.READY),
        ("active", Phase.RECOVERING, State.RECOVERING),
        ("reloading", Phase.RECOVERING, State.RECOVERING),
        ("reloading", Phase.READY, State.RELOADING),
        ("active", Phase.RELOADING, State.RELOADING),
        ("active", Phase.STOPPING, State.STOPPING),
        ("activating", Phase.LOADING, State.STARTING),
        ("activating", Phase.READY, State.STARTING),
        ("inactive", Phase.READY, State.STOPPED),
        ("failed", Phase.FAILED, State.FAILED),
    ],
)
def test_state_follows_systemd_and_phase(active: str, phase: Phase | None, state: State) -> None:
    assert State.of(active, "", phase) is state


def test_no_module_parses_the_text_of_a_unit() -> None:
    """Its text is for people; programs read state.json."""
    code = Path(hxp_enterprise_llm.__file__).parent
    readers = {str(file.relative_to(code)) for file in code.rglob("*.py") if "StatusText" in file.read_text()}
    # The former shows the text if there is no state, the latter keeps it for this purpose.
    assert readers == {"control/failures.py", "monitoring/units.py"}


def test_enable_warns_about_refused_settings(root: Root, caplog: pytest.LogCaptureFixture) -> None:
    root.instance("a", GOOD)
    root.instance("b", GOOD + "PORT=none\n")
    systemd = FakeSystemd()
    manager(root, systemd).enable("a", "b")
    assert systemd.asked == [("enable", "citadel-llm@a.service"), ("enable", "citadel-llm@b.service")]
    (warning,) = caplog.messages
    assert warning.startswith("b is enabled, but cannot start with these settings: ")
    assert "PORT=none is refused" in warning


def test_status_names_failed_requirement(root: Root) -> None:
    root.instance("a", GOOD)
    root.instance("b", GOOD + "REQUIRES=a\n")
    systemd = FakeSystemd()
    state_file(root, "a").enter(Phase.FAILED, "the port is taken")
    failed: dict[str, Any] = {
        "Result": "exit-code",
        "ExecMainCode": 1,
        "ExecMainStatus": 69,
        "ExecMainExitTimestamp": 1,
    }
    systemd.of["citadel-llm@a.service"] = {"ActiveState": "failed", "InvocationID": RUN, **failed}
    said = "requires a, which failed: the port is taken"
    assert manager(root, systemd).status("b").reason == said
    assert [one.reason for one in manager(root, systemd).list_services()] == ["the port is taken", said]
    state_file(root, "b").enter(Phase.READY)
    systemd.of["citadel-llm@b.service"] = {"ActiveState": "active", "InvocationID": RUN}
    assert manager(root, systemd).status("b").reason == "Ready"


def test_unknown_instance_is_reported_by_name(root: Root) -> None:
    root.instance("a", GOOD)
    for call in ("status", "start", "enable"):
        with pytest.raises(NoSuchInstance, match="there is no instance 'b'; citadel-llm list"):
            getattr(manager(root, FakeSystemd()), call)("b")
