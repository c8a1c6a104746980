"""Readiness of instances, from systemd's state and the probes of their endpoints."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hxp_enterprise_llm.control.service import State
from hxp_enterprise_llm.monitoring import health, metrics, units
from hxp_enterprise_llm.protocol.failures import Kind
from hxp_enterprise_llm.protocol.state import NAME, Phase
from hxp_enterprise_llm.settings.address import Address

from .conftest import Root
from .monitored import KILLED, RUNS, Answering, fleet_of, settle, state_file, write


def test_bus_path_maps_to_instance() -> None:
    from hxp_enterprise_llm.control.systemd import unit_path

    for name in ("test", "openchat-3.5", "7b", "A_b"):
        assert units.instance_at(unit_path(f"citadel-llm@{name}.service")) == name
    for unit in ("ssh.service", "citadel-llm-monitor.service", "citadel-llm@.service", "citadel-llm@a/b.service"):
        assert units.instance_at(unit_path(unit)) is None
    assert units.instance_at("/org/freedesktop/systemd1") is None


def test_ready_requires_systemd_and_endpoint(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        answering = Answering()
        fleet = fleet_of(root, tmp_path, answering, "a", "b")
        assert fleet.services().status == "unhealthy", "systemd has not answered yet"
        assert {one.state for one in fleet.services().services} == {State.UNKNOWN}
        fleet.connected("")
        fleet.changed("a", RUNS | {"UnitFileState": "enabled"}, 1)
        fleet.changed("b", {"ActiveState": "inactive", "UnitFileState": "disabled"}, 1)
        state_file(root, "a").enter(Phase.READY)
        fleet.record()
        assert not fleet.services().services[0].ready, "it ran before the monitor: its endpoint has to be asked"
        await settle(fleet)
        found = fleet.services()
        a, b = found.services
        assert (a.ready, a.port, a.pid, a.startup_seconds, a.enabled, a.reason) == (True, 11500, 7, 8, True, "Ready")
        assert (b.ready, b.state, b.enabled) == (False, State.STOPPED, False)
        assert found.status == health.Status.HEALTHY, "b need not run"
        answering.said = "answers 500"
        fleet.probe_all()
        await settle(fleet)
        a = fleet.services().services[0]
        assert (a.ready, a.state, fleet.services().status) == (False, State.READY, "unhealthy")
        assert a.reason == "systemd says that it runs, but answers 500"
        fleet.changed("a", {"ActiveState": "inactive", "SubState": "dead"}, 1)
        assert fleet.services().status == "unhealthy", "it is enabled and down"
        fleet.changed("a", {"UnitFileState": "disabled"}, 1)
        assert fleet.services().status == "healthy"

    asyncio.run(scenario())


def test_instance_is_ready_as_soon_as_systemd_reports_active(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        fleet.changed("a", RUNS | {"ActiveState": "activating", "SubState": "start"}, 1)
        assert not fleet.services().services[0].ready
        fleet.changed("a", {"ActiveState": "active", "SubState": "running"}, 1)
        assert fleet.services().services[0].ready

    asyncio.run(scenario())


@pytest.mark.parametrize("edit", ["PORT=$nonsense\n", "MODEL=/srv/m\nPORT=11999\n"])
def test_probe_uses_reported_address_not_current_settings(root: Root, tmp_path: Path, edit: str) -> None:
    told = state_file(root, "a")
    told.serves(Address(scheme="https", host="127.0.0.1", port=11700), 4102444800.0)
    told.enter(Phase.READY)

    async def scenario() -> None:
        answering = Answering()
        fleet = fleet_of(root, tmp_path, answering, "a")
        fleet.connected("")
        fleet.changed("a", RUNS | {"UnitFileState": "enabled"}, 1)
        await settle(fleet)
        root.instance("a", edit)
        fleet.present(set(fleet.names()))
        (a,) = fleet.services().services
        assert (a.port, a.tls) == (11700, True)
        assert a.certificate_expires == datetime(2100, 1, 1, tzinfo=UTC)
        expiry = b'citadel_llm_service_certificate_expiry_seconds{service="a"} 4.1024448e+09'
        assert expiry in metrics.Exposition(fleet, "1").text("")[1]
        answering.said = "answers 500"
        answering.ports.clear()
        fleet.probe_all()
        await settle(fleet)
        assert answering.ports == [11700]
        assert (fleet.services().services[0].ready, fleet.services().status) == (False, "unhealthy")
        (target,) = fleet.targets()
        assert (target.targets, target.labels) == (("127.0.0.1:11700",), {"service": "a", "__scheme__": "https"})
        fleet.changed("a", {"ActiveState": "inactive", "SubState": "dead"}, 1)
        (a,) = fleet.services().services
        assert a.port != 11700 and a.certificate_expires is None, "the reported values belong to an ended run"
        assert expiry not in metrics.Exposition(fleet, "1").text("")[1]

    asyncio.run(scenario())


def test_instance_with_unknown_address_is_not_ready(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        answering = Answering()
        fleet = fleet_of(root, tmp_path, answering)
        root.instance("a", "PORT=$nonsense\n")
        fleet.present(set(fleet.names()))
        fleet.connected("")
        fleet.changed("a", RUNS | {"ActiveState": "activating", "SubState": "start", "UnitFileState": "enabled"}, 1)
        fleet.changed("a", {"ActiveState": "active", "SubState": "running"}, 1)
        fleet.probe_all()
        await settle(fleet)
        (a,) = fleet.services().services
        assert (answering.ports, a.ready, a.state, fleet.services().status) == ([], False, State.READY, "unhealthy")
        assert a.reason == "systemd says that it runs, but its address is not known: its settings are refused"
        assert fleet.instances["a"].uptime_counts(time.time()) is None, "nobody knows"
        root.instance("a", "MODEL=/srv/m\nPORT=11500\n")
        fleet.present(set(fleet.names()))
        fleet.probe_all()
        await settle(fleet)
        assert (answering.ports, fleet.services().services[0].ready) == ([11500], True)

    asyncio.run(scenario())


def test_descriptor_shortage_of_monitor_does_not_change_readiness(
    root: Root, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        answering = Answering()
        fleet = fleet_of(root, tmp_path, answering, "a")
        fleet.connected("")
        fleet.changed("a", RUNS, 1)
        for said, ready in (("", True), (None, True), (None, True), ("answers 500", False), (None, False), ("", True)):
            answering.said = said
            fleet.probe_all()
            await settle(fleet)
            assert fleet.services().services[0].ready is ready, said

    asyncio.run(scenario())
    assert caplog.text.count("too few descriptors") == caplog.text.count("again has descriptors") == 2


def test_oom_kill_count_is_read_before_the_cgroup_is_removed(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "cgroup.controllers").write_text("")
        write(tmp_path / "a.service", memory__events="oom_kill 0\n")
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        fleet.changed("a", RUNS | {"ControlGroup": "/a.service"}, 1)
        fleet.record()
        write(tmp_path / "a.service", memory__events="oom_kill 1\n")
        fleet.changed("a", KILLED, 1)
        assert fleet.store.ledger("a").failures == {Kind.OUT_OF_MEMORY: 1}

    asyncio.run(scenario())


def test_state_is_unknown_without_systemd(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        fleet.changed("a", RUNS, 1)
        await settle(fleet)
        fleet.connected("no bus")
        assert [(one.state, one.ready, one.pid) for one in fleet.services().services] == [(State.UNKNOWN, False, None)]
        assert fleet.services().status == "unhealthy"
        _, text = metrics.Exposition(fleet, "1").text("")
        assert 'citadel_llm_service_state{service="a",state="unknown"} 1.0' in text.decode()
        assert "citadel_llm_service_up{" not in text.decode(), "0 would say that it is down"
        assert "citadel_llm_monitor_systemd_reachable 0.0" in text.decode()

    asyncio.run(scenario())


def test_active_or_failed_unit_without_settings_file_is_listed(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering())
        fleet.connected("")
        fleet.changed("stray", {"NRestarts": 1}, 1)
        fleet.changed("stray", {"ActiveState": "inactive"}, 1)
        assert fleet.services().services == ()
        fleet.changed("stray", {"ActiveState": "failed", "Result": "timeout"}, 1)
        (stray,) = fleet.services().services
        assert (stray.name, stray.port, stray.state) == ("stray", None, State.FAILED)
        fleet.present(set())
        assert fleet.services().services == ()

    asyncio.run(scenario())


def test_state_of_an_earlier_run_is_ignored_and_not_counted(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        told = state_file(root, "a")
        told.failed("engine-died", "it ended")
        told.enter(Phase.RECOVERING, "it ended")
        fleet.changed("a", RUNS, 1)
        assert fleet.services().services[0].state is State.RECOVERING
        fleet.changed("a", {"InvocationID": "b", "ActiveState": "activating"}, 1)
        (a,) = fleet.services().services
        assert (a.state, a.reason) == (State.STARTING, "")
        fleet.changed("a", {"ActiveState": "active"}, 1)
        assert fleet.services().services[0].state is State.READY
        assert fleet.store.ledger("a").failures == {Kind.ENGINE_DIED: 1}, "counted once"

    asyncio.run(scenario())


def test_the_reason_of_a_failed_start_is_that_of_the_main_process(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        state_file(root, "a").enter(Phase.FAILED, "PORT is missing")
        end = {"Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 78, "ExecMainExitTimestamp": 200_000_000}
        fleet.changed("a", RUNS | end | {"ActiveState": "failed", "SubState": "failed"}, 1)
        (a,) = fleet.services().services
        assert (a.state, a.reason, a.exit_status) == (State.FAILED, "PORT is missing", 78)
        assert a.last_failure and (a.last_failure.kind, a.last_failure.reason) == ("settings-refused", a.reason)

    asyncio.run(scenario())


def test_running_instance_of_an_earlier_version_has_state_of_systemd(root: Root, tmp_path: Path) -> None:
    """After an upgrade that restarts nothing its state.json has neither phase nor invocation."""

    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        state_file(root, "a")
        file = root.path / "run/citadel-llm/a" / NAME
        failures = '"failures": {"engine-died": 1}, "last_failure": {"kind": "engine-died", "reason": "x", "at": 1}'
        file.write_text('{"address": {"scheme": "http", "host": "127.0.0.1", "port": 11777}, ' + failures + "}")
        fleet.changed("a", RUNS | {"StatusText": "Recovering: words that no program reads"}, 1)
        await settle(fleet)
        (a,) = fleet.services().services
        assert (a.state, a.ready, a.port) == (State.READY, True, 11777)
        assert fleet.store.ledger("a").failures == {Kind.ENGINE_DIED: 1}
        fleet.changed("a", {"InvocationID": "b", "ActiveState": "activating"}, 1)
        fleet.record()
        assert fleet.store.ledger("a").failures == {Kind.ENGINE_DIED: 1}, "the file has outlived its run"
        fleet.changed("a", {"ActiveState": "reloading"}, 1)
        assert fleet.services().services[0].state is State.RELOADING

    asyncio.run(scenario())
