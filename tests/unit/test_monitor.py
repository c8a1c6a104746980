"""What the monitor makes of what it is told: counts, periods, control groups, hostile files, answers."""

import asyncio
import json
import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from hxp_enterprise_llm.monitoring import cgroups, health, metrics, state_file, units, web
from hxp_enterprise_llm.monitoring.failures import Kind, exit_code, kind_of, reason_of, words
from hxp_enterprise_llm.monitoring.fleet import Fleet
from hxp_enterprise_llm.monitoring.instance import Instance
from hxp_enterprise_llm.monitoring.ledger import Event, Ledger, Meter, Start
from hxp_enterprise_llm.monitoring.presence import LONGEST_GAP_SEC, Presence
from hxp_enterprise_llm.monitoring.state_file import InstanceState
from hxp_enterprise_llm.monitoring.store import DAY_SEC, KEEP_DAYS, Store
from hxp_enterprise_llm.services.core.service_manager.address import Address
from hxp_enterprise_llm.services.core.service_manager.service import State

from .conftest import Root

SECOND = 1_000_000
RUNS = {
    "ActiveState": "active", "SubState": "running", "InvocationID": "a", "Result": "success", "MainPID": 7,
    "ExecMainStartTimestamp": 100 * SECOND, "ActiveEnterTimestamp": 108 * SECOND, "StateChangeTimestamp": 108 * SECOND,
    "StatusText": "Ready",
}  # fmt: skip
KILLED = {
    "ActiveState": "activating", "SubState": "auto-restart", "Result": "signal", "ExecMainCode": 2,
    "ExecMainStatus": 9, "ExecMainExitTimestamp": 200 * SECOND,
}  # fmt: skip


# Control groups


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_version_2_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    write(
        tmp_path / "citadel.slice/a.service", memory__current="1000\n", memory__peak="3000\n", memory__max="4000\n",
        memory__events="low 0\nhigh 3\noom 1\noom_kill 2\noom_group_kill 0\n",
        cpu__stat="usage_usec 2500000\nuser_usec 1\n", cpu__max="150000 100000\n",
        pids__current="5\n", pids__max="64\n",
    )  # fmt: skip
    assert cgroups.read("/citadel.slice/a.service", tmp_path) == (1000, 3000, 4000, 2.5, 1.5, 5, 64, 2)


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    write(
        tmp_path / "memory/a.service", memory__usage_in_bytes="1000\n", memory__max_usage_in_bytes="3000\n",
        memory__limit_in_bytes="4000\n", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )  # fmt: skip
    write(tmp_path / "cpu/a.service", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "cpuacct/a.service", cpuacct__usage="2500000000\n")
    write(tmp_path / "pids/a.service", pids__current="5\n", pids__max="64\n")
    assert cgroups.read("/a.service", tmp_path) == (1000, 3000, 4000, 2.5, 1.5, 5, 64, 2)
    (tmp_path / "cpuacct/a.service/cpuacct.usage").unlink()
    write(tmp_path / "unified/a.service", cpu__stat="usage_usec 700000\n")
    assert cgroups.read("/a.service", tmp_path).cpu_seconds == 0.7


def test_no_limit_and_no_group_are_none(tmp_path: Path) -> None:
    write(tmp_path / "memory/a", memory__limit_in_bytes="9223372036854771712\n")
    write(tmp_path / "cpu/a", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert set(cgroups.read("/a", tmp_path)) == {None}
    (tmp_path / "cgroup.controllers").write_text("")
    write(
        tmp_path / "b",
        memory__max="max\n",
        cpu__max="max 100000\n",
        pids__max="max\n",
        memory__current="x\udcff".encode("utf-8", "ignore").decode(),
    )
    assert set(cgroups.read("/b", tmp_path)) == {None}
    assert set(cgroups.read("/gone", tmp_path)) == {None}
    # A stopped unit has no group: the root's figures are not its own.
    assert set(cgroups.read("", tmp_path)) == set(cgroups.read("/", tmp_path)) == {None}


# state.json


def test_what_the_main_process_says_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    said = {
        "startup_seconds": 7.9,
        "failures": {"engine-died": 2},
        "last_failure": {"kind": "engine-died", "reason": "x" * 999, "at": 17e8},
    }
    (tmp_path / "a/state.json").write_text(json.dumps(said))
    state = state_file.read(str(tmp_path), "a")
    assert state and state.startup_seconds == 7.9 and state.failures == {Kind.ENGINE_DIED: 2}
    assert state.last and len(state.last.reason) == 300
    assert state_file.read(str(tmp_path), "b") is None
    said |= {"failures": {"engine-died": 3, "news": 1}, "last_failure": {"kind": "news", "reason": "x", "at": 1}}
    (tmp_path / "a/state.json").write_text(json.dumps(said))
    state = state_file.read(str(tmp_path), "a")
    assert state and state.failures == {Kind.ENGINE_DIED: 3} and state.last is None


@pytest.mark.parametrize(
    "text",
    [
        '{"address": {"scheme": "http", "host": "localhost", "port": 11500}}',
        '{"address": {"scheme": "file", "host": "127.0.0.1", "port": 11500}}',
        '{"address": {"scheme": "http", "host": "127.0.0.1", "port": 22}}',
        '{"address": {"scheme": "http", "host": "127.0.0.1", "port": "11500"}}',
        "", "{", "[]", "null", '{"failures": {"engine-died": -1}}', '{"failures": {"engine-died": 1e99}}',
        '{"failures": {"engine-died": true}}', '{"startup_seconds": NaN}',
        '{"certificate_expires": 1e12}', '{"certificate_expires": -1}', '{"certificate_expires": NaN}',
        '{"startup_seconds": 1e308}', '{"startup_seconds": -1}', '{"failures": {"engine-died": ' + "9" * 5000 + "}}",
        '{"last_failure": {"kind": "engine-died", "reason": "x", "at": Infinity}}', "[" * 60000, " " * 65537 + "{}",
        '{"last_failure": {"kind": "engine-died", "reason": ["x"], "at": 1}}',
    ],
)  # fmt: skip
def test_hostile_words_of_the_main_process_are_not_believed(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/state.json").write_text(text)
    assert state_file.read(str(tmp_path), "a") is None


@pytest.mark.parametrize(("host", "believed"), [("127.9.9.9", True), ("::", True), ("192.0.2.1", False)])
def test_an_address_of_another_host_is_not_asked(tmp_path: Path, host: str, believed: bool) -> None:
    (tmp_path / "a").mkdir()
    told = {"address": {"scheme": "http", "host": host, "port": 11500}, "startup_seconds": 1}
    (tmp_path / "a/state.json").write_text(json.dumps(told))
    state = state_file.read(str(tmp_path), "a")
    assert state and state.startup_seconds == 1
    assert bool(state.address) == believed


def test_hostile_files_in_the_place_of_the_state_are_not_opened(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text('{"startup_seconds": 1}')
    for name in ("link", "pipe", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "link/state.json").symlink_to(good)
    os.mkfifo(tmp_path / "pipe/state.json")
    (tmp_path / "folder/state.json").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/state.json").write_text('{"startup_seconds": 1}')
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("link", "pipe", "folder", "linked"):
        assert state_file.read(str(tmp_path), name) is None
    assert state_file.read(str(tmp_path), "elsewhere")


def test_other_peoples_words_are_one_short_line() -> None:
    assert words("a\nb\x1b[31m\u202e c" + "x" * 9999).startswith("a b [31m c")
    assert len(words("x" * 9999)) == 300


# Counting


@pytest.mark.parametrize(
    ("result", "status", "kind"),
    [
        ("success", 0, None), ("exit-code", 78, "settings-refused"), ("exit-code", 69, "unavailable"),
        ("exit-code", 70, "engine-died"), ("exit-code", 71, "out-of-memory"), ("exit-code", 75, "engine-hung"),
        ("exit-code", 1, "exit-code"), ("signal", 9, "signal"), ("watchdog", 6, "watchdog"), ("timeout", 15, "timeout"),
        ("core-dump", 11, "core-dump"), ("oom-kill", 9, "out-of-memory"), ("start-limit-hit", 70, "start-limit-hit"),
        ("resources", 0, "unavailable"), ("protocol", 0, "exit-code"),
    ],
)  # fmt: skip
def test_kinds_of_failures(result: str, status: int, kind: str | None) -> None:
    assert kind_of({"Result": result, "ExecMainStatus": status}) == kind


def test_an_exit_code_is_told_as_shells_do() -> None:
    assert exit_code(KILLED) == 137
    assert exit_code(KILLED | {"ExecMainCode": 1, "ExecMainStatus": 70}) == 70
    assert exit_code(RUNS) is None
    assert reason_of(KILLED) == "systemd: signal; the main process was ended by signal 9"
    died = {
        "Result": "exit-code",
        "ExecMainCode": 1,
        "ExecMainStatus": 70,
        "ExecMainExitTimestamp": 1,
        "StatusText": "It died",
    }
    assert reason_of(died) == "It died"


def test_a_start_is_counted_once_with_its_time() -> None:
    ledger = Ledger()
    assert ledger.take_unit(RUNS | {"ActiveState": "activating", "ActiveEnterTimestamp": 0}, 1, 105) == []
    assert ledger.take_unit(RUNS, 1, 108) == [Start(at=108, seconds=8)]
    assert ledger.take_unit(RUNS, 1, 109) == []
    # A re-read ledger, as after a restart of the monitor, knows it still.
    assert Ledger.model_validate_json(ledger.model_dump_json()).take_unit(RUNS, 1, 110) == []
    assert ledger.startup_seconds == 8
    assert ledger.take_state(InstanceState(startup_seconds=3.0), 120) == []
    assert ledger.startup_seconds == 3


def test_a_killed_main_process_is_one_failure_and_one_restart() -> None:
    ledger = Ledger()
    ledger.take_unit(RUNS, 1, 108)
    (failure,) = ledger.take_unit(RUNS | KILLED, 1, 201)
    assert failure == Event(at=200, what="signal", reason="systemd: signal; the main process was ended by signal 9")
    assert ledger.take_unit(RUNS | KILLED, 1, 202) == []
    again = RUNS | {
        "InvocationID": "b",
        "NRestarts": 1,
        "ExecMainStartTimestamp": 210 * SECOND,
        "ActiveEnterTimestamp": 218 * SECOND,
    }
    assert ledger.take_unit(again, 1, 218) == [Event(at=218, what="restart"), Start(at=218, seconds=8)]
    assert (ledger.restarts, ledger.failures, ledger.exit_code) == (1, {Kind.SIGNAL: 1}, 137)


@pytest.mark.parametrize(
    ("before", "at_the_end", "kind"), [(1, 2, Kind.OUT_OF_MEMORY), (1, 1, Kind.SIGNAL), (1, None, Kind.SIGNAL)]
)
def test_the_kernels_count_tells_why_a_main_process_was_killed(before: int, at_the_end: int | None, kind: Kind) -> None:
    ledger = Ledger()
    ledger.take_unit(RUNS, 1, 108)
    ledger.take_usage(cgroups.Usage(oom_kills=before))
    (failure,) = ledger.take_unit(RUNS | KILLED, 1, 201, at_the_end)
    assert isinstance(failure, Event) and (failure.what, failure.at) == (kind, 200)
    assert ("memory limit" in failure.reason) is (kind is Kind.OUT_OF_MEMORY)
    # Told again, when the group is gone or has been read meanwhile, it is still one failure.
    ledger.take_usage(cgroups.Usage(oom_kills=at_the_end))
    assert ledger.take_unit(RUNS | KILLED, 1, 202) == ledger.take_unit(RUNS | KILLED, 1, 203, at_the_end) == []
    assert ledger.failures == {kind: 1}
    other = RUNS | KILLED | {"InvocationID": "b", "ExecMainStatus": 15}
    (failure,) = ledger.take_unit(other, 1, 300, 9)
    assert isinstance(failure, Event) and failure.what == Kind.SIGNAL, "the kernel sends SIGKILL only"


def test_a_clean_stop_counts_nothing() -> None:
    ledger = Ledger()
    ledger.take_unit(RUNS, 1, 108)
    stopped = RUNS | {
        "ActiveState": "inactive",
        "ExecMainExitTimestamp": 300 * SECOND,
        "ExecMainCode": 1,
        "ExecMainStatus": 0,
    }
    assert ledger.take_unit(stopped, 1, 300) == []
    assert (ledger.restarts, ledger.failures, ledger.exit_code) == (0, {}, 0)


def test_a_start_limit_counts_beside_the_failure_before_it() -> None:
    ledger = Ledger()
    refused = RUNS | {"Result": "exit-code", "ExecMainStatus": 70, "ExecMainCode": 1, "ExecMainExitTimestamp": SECOND}
    ledger.take_unit(refused, 1, 1)
    ledger.take_unit(refused | {"Result": "start-limit-hit"}, 1, 2)
    assert ledger.failures == {Kind.ENGINE_DIED: 1, Kind.START_LIMIT_HIT: 1}


def test_restarts_only_rise() -> None:
    ledger = Ledger()
    for boot, seen, total in ((1, 2, 2), (1, 2, 2), (1, 3, 3), (1, 0, 3), (1, 1, 4), (2, 1, 5), (2, 1, 5)):
        ledger.take_unit({"NRestarts": seen}, boot, 1)
        assert ledger.restarts == total, (boot, seen)


def test_what_the_main_process_mended_is_counted_once_for_each_of_its_lives() -> None:
    ledger = Ledger()
    ledger.take_unit(RUNS, 1, 108)
    mended = InstanceState.model_validate(
        {
            "failures": {"engine-died": 2, "engine-hung": 0},
            "last_failure": {"kind": "engine-died", "reason": "r", "at": 150},
        }
    )
    assert ledger.take_state(mended, 160) == [Event(at=150, what="engine-died", reason="r", count=2)]
    assert ledger.take_state(mended, 160) == []
    # Lowering its count wins it nothing.
    assert ledger.take_state(InstanceState(failures={Kind.ENGINE_DIED: 1}), 160) == []
    assert ledger.take_state(mended, 160) == []
    ledger.take_unit(RUNS | {"InvocationID": "b"}, 1, 300)
    assert len(ledger.take_state(mended, 160)) == 1
    assert ledger.failures == {Kind.ENGINE_DIED: 4}
    assert ledger.last_failure and ledger.last_failure.reason == "r"


def test_a_meter_never_falls() -> None:
    meter = Meter()
    for reading, total in ((5, 5), (7, 7), (None, 7), (2, 9), (3, 10)):
        meter.read(reading)
        assert meter.total == total


def test_the_kernels_peak_counts_when_it_rises() -> None:
    ledger = Ledger()
    readings = [(10, 90), (10, 90), (20, 90), (10, 95)]
    taken = [ledger.take_usage(cgroups.Usage(memory_bytes=now, memory_peak_bytes=peak)) for now, peak in readings]
    assert taken == [90, 10, 20, 95]


# Periods


def test_periods_follow_each_other() -> None:
    presence = Presence()
    assert presence.seen(True, since=90, now=100) == [(True, 90, 100)]
    assert presence.seen(True, 90, 110) == [(True, 90, 110)]
    assert presence.seen(False, 110, 120) == [(True, 90, 120)]
    assert presence.seen(True, 130, 130) == [(False, 120, 130)]
    assert presence.seen(None, 140, 140) == [(True, 130, 140)]
    assert presence.seen(None, 140, 150) == []
    assert presence.seen(True, 160, 160) == []
    assert presence.seen(True, 160, 170) == [(True, 160, 170)]


def test_a_pause_of_the_monitor_is_filled_by_what_ran_on() -> None:
    assert Presence(until=100).seen(True, since=50, now=500) == [(True, 100, 500)]
    assert Presence(until=100).seen(True, since=400, now=500) == [(True, 400, 500)]
    # Down since when, nobody saw.
    assert Presence(until=100).seen(False, since=50, now=500) == []


def test_a_jump_of_the_clock_is_no_time() -> None:
    presence = Presence()
    presence.seen(True, 90, 100)
    assert presence.seen(True, 90, 100 + LONGEST_GAP_SEC + 1) == []
    assert presence.seen(True, 90, 50) == []
    assert presence.seen(True, 90, 60) == [(True, 50, 60)]


def test_what_time_counts() -> None:
    instance = Instance("a", Presence())

    def then(active: str, sub: str, now: float, **properties: Any) -> bool | None:
        instance.properties |= {"ActiveState": active, "SubState": sub, **properties}
        return instance.uptime_counts(now)

    assert instance.uptime_counts(0) is None, "nothing is known of it"
    instance.known = True
    assert then("inactive", "dead", 100) is None
    assert then("activating", "start", 110, StateChangeTimestamp=105 * SECOND) is None, "a start takes its time"
    assert then("activating", "start", 136) is False, "but not more than what is promised"
    assert then("active", "running", 140) is None, "it has not been asked"
    instance.trouble = ""
    assert then("active", "running", 141) is True
    assert then("reloading", "reload", 142) is True
    assert then("deactivating", "stop", 143, Result="success") is None
    assert then("deactivating", "stop", 143, Result="signal") is False
    assert then("activating", "auto-restart", 144) is False
    assert then("activating", "start", 145, StateChangeTimestamp=145 * SECOND) is False, "it mends a failure"
    assert then("active", "running", 150) is True
    instance.trouble = "answers 500"
    assert then("active", "running", 150) is False
    assert then("failed", "failed", 151) is False
    assert then("inactive", "dead", 152) is None
    assert then("activating", "start", 153, StateChangeTimestamp=153 * SECOND) is None


# The store


def flush(store: Store, now: float | None = None) -> bool:
    batch = store.batch()
    written = store.write(batch, time.time() if now is None else now)
    if not written:
        store.put_back(batch)
    return written


def rows(file: Path, table: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(file)
    found = database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()  # noqa: S608  our own names
    database.close()
    return found


def test_the_store_survives_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    now = time.time()
    store = Store(file)
    store.happened(
        "a", *store.ledger("a").take_unit(KILLED | {"NRestarts": 3, "ExecMainExitTimestamp": now * SECOND}, 1, now)
    )
    store.was("a", True, now - 100, now - 10)
    store.was("a", True, now - 100, now - 1)
    store.was("a", False, now - 1, now)
    store.used("a", 50, 100, now)
    store.used("a", 40, 100, now)
    assert flush(store)
    store.close()
    again = Store(file)
    assert again.ledger("a") == store.ledger("a") and again.ledger("a").restarts == 3
    assert again.uptime("a") == pytest.approx(0.99)
    assert again.ends == {"a": now}
    assert len(rows(file, "period")) == 2 and len(rows(file, "event")) == 2
    assert rows(file, "peak")[0][2] == 50


@pytest.mark.parametrize("damage", ["no database", "other schema", "other version", "bad ledger", "torn"])
def test_a_corrupt_store_is_set_aside_and_a_new_one_begun(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file)
    store.ledger("a").restarts = 1
    store.close()
    if damage == "no database":
        file.write_bytes(b"nonsense" * 1000)
    elif damage == "torn":
        content = bytearray(file.read_bytes())
        content[4096:12288] = b"\xff" * 8192
        file.write_bytes(content)
    else:
        database = sqlite3.connect(file)
        statement = {
            "other schema": "DROP TABLE ledger",
            "other version": "PRAGMA user_version = 99",
            "bad ledger": 'UPDATE ledger SET content = \'{"restarts": "x"}\'',
        }[damage]
        database.execute(statement)
        database.commit()
        database.close()
    again = Store(file)
    assert not again.trouble
    assert (tmp_path / "m.sqlite.corrupt").exists()
    again.ledger("b").restarts = 2
    assert flush(again)
    assert [row[0] for row in rows(file, "ledger")][-1] == "b"


def test_a_full_disk_delays_what_is_written_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file)
    # The file may grow no further: what sqlite then says is what it says of a full disk.
    assert store._database
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    store.happened("a", *(Event(at=time.time() - n, what="restart", reason="x" * 300) for n in range(500)))
    store.ledger("a").restarts = 500
    disconnect, store._disconnect = store._disconnect, lambda: None  # type: ignore[method-assign]
    assert not flush(store)
    assert "full" in store.trouble
    store._disconnect = disconnect  # type: ignore[method-assign]
    store._disconnect()
    assert flush(store) and not store.trouble
    assert len(rows(file, "event")) == 500
    assert "500" in rows(file, "ledger")[0][1]


def test_a_store_that_cannot_be_opened_is_no_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "missing/m.sqlite")
    assert "cannot be written" in store.trouble
    store.ledger("a").restarts = 7
    assert not flush(store)
    (tmp_path / "missing").mkdir()
    assert flush(store) and not store.trouble
    assert Store(tmp_path / "missing/m.sqlite").ledger("a").restarts == 7


def test_what_is_old_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file)
    now = 2e9
    for age in (KEEP_DAYS + 1, KEEP_DAYS - 1):
        at = now - age * DAY_SEC
        store.happened("a", Event(at=at, what="restart"), Start(at=at, seconds=1))
        store.was("a", True, at - 10, at)
        store.used("a", 5, None, at)
    assert flush(store, now)
    assert [len(rows(file, table)) for table in ("event", "start", "period", "peak")] == [1, 1, 1, 1]


# Units


def test_bus_paths_are_instances() -> None:
    from hxp_enterprise_llm.services.core.service_manager.systemd import unit_path

    for name in ("test", "openchat-3.5", "7b", "A_b"):
        assert units.instance_of(unit_path(f"citadel-llm@{name}.service")) == name
    for unit in ("ssh.service", "citadel-llm-monitor.service", "citadel-llm@.service", "citadel-llm@a/b.service"):
        assert units.instance_of(unit_path(unit)) is None
    assert units.instance_of("/org/freedesktop/systemd1") is None


# The fleet and its answers


class Answering:
    """An endpoint that says what it is told to."""

    def __init__(self) -> None:
        self.said: str | None = ""
        self.ports: list[int] = []

    async def __call__(self, address: Address) -> str | None:
        self.ports.append(address.port)
        return self.said


def fleet_of(root: Root, tmp_path: Path, answering: Answering, *names: str) -> Fleet:
    root.host(f"VLLM_PID_PATH=/run/{tmp_path.name}\n")
    for number, name in enumerate(names):
        root.instance(name, f"MODEL=/srv/m\nPORT={11500 + number}\n")
    fleet = Fleet(Store(tmp_path / "m.sqlite"), answering, str(root), tmp_path)
    fleet.present(set(fleet.names()))
    return fleet


async def settle(fleet: Fleet) -> None:
    await asyncio.sleep(0)
    await fleet.probed()


def test_ready_is_what_systemd_and_the_endpoint_agree_on(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        answering = Answering()
        fleet = fleet_of(root, tmp_path, answering, "a", "b")
        assert fleet.services().status == "unhealthy", "systemd has not been asked yet"
        assert {one.state for one in fleet.services().services} == {State.UNKNOWN}
        fleet.connected("")
        fleet.changed("a", RUNS | {"UnitFileState": "enabled"}, 1)
        fleet.changed("b", {"ActiveState": "inactive", "UnitFileState": "disabled"}, 1)
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


def test_one_that_becomes_ready_is_believed_at_once(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        fleet.changed("a", RUNS | {"ActiveState": "activating", "SubState": "start"}, 1)
        assert not fleet.services().services[0].ready
        fleet.changed("a", {"ActiveState": "active", "SubState": "running"}, 1)
        assert fleet.services().services[0].ready

    asyncio.run(scenario())


@pytest.mark.parametrize("edit", ["PORT=$nonsense\n", "MODEL=/srv/m\nPORT=11999\n"])
def test_one_is_asked_where_it_says_that_it_is_whatever_its_settings_say_since(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    told = InstanceState(
        address=Address(scheme="https", host="127.0.0.1", port=11700), certificate_expires=4102444800.0
    )
    monkeypatch.setattr(state_file, "read", lambda *_: told)

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
        assert a.port != 11700 and a.certificate_expires is None, "what it said of a run that has ended"
        assert expiry not in metrics.Exposition(fleet, "1").text("")[1]

    asyncio.run(scenario())


def test_one_that_cannot_be_asked_is_not_ready(root: Root, tmp_path: Path) -> None:
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
        assert a.reason == "systemd says that it runs, but nobody knows where to ask it: its settings are refused"
        assert fleet.instances["a"].uptime_counts(time.time()) is None, "nobody knows"
        root.instance("a", "MODEL=/srv/m\nPORT=11500\n")
        fleet.present(set(fleet.names()))
        fleet.probe_all()
        await settle(fleet)
        assert (answering.ports, fleet.services().services[0].ready) == ([11500], True)

    asyncio.run(scenario())


def test_a_lack_of_our_own_is_no_sign_against_an_instance(
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


def test_the_kernels_count_is_read_before_the_group_goes(root: Root, tmp_path: Path) -> None:
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


def test_without_systemd_nothing_is_known(root: Root, tmp_path: Path) -> None:
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


def test_units_without_a_file_count_while_they_run(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering())
        fleet.connected("")
        fleet.changed("stray", {"StatusText": "x"}, 1)
        fleet.changed("stray", {"ActiveState": "inactive"}, 1)
        assert fleet.services().services == ()
        fleet.changed("stray", {"ActiveState": "failed", "StatusText": "Failed"}, 1)
        (stray,) = fleet.services().services
        assert (stray.name, stray.port, stray.state) == ("stray", None, State.FAILED)
        fleet.present(set())
        assert fleet.services().services == ()

    asyncio.run(scenario())


class Client:
    """Asks an application, without a network."""

    def __init__(self, application: Any) -> None:
        self.application = application

    def get(self, path: str, method: str = "GET") -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.application)
            async with httpx.AsyncClient(transport=transport, base_url="http://monitor") as client:
                return await client.request(method, path)

        return asyncio.run(ask())


def client_of(root: Root, tmp_path: Path) -> tuple[Fleet, Client]:
    fleet = fleet_of(root, tmp_path, Answering(), "a", "b")
    fleet.connected("")
    fleet.changed("b", {"ActiveState": "inactive", "UnitFileState": "disabled"}, 1)
    return fleet, Client(web.application(fleet, "1.2"))


def test_the_answers_of_the_health_port(root: Root, tmp_path: Path) -> None:
    fleet, client = client_of(root, tmp_path)
    answer = client.get("/health/services")
    assert answer.status_code == 200
    one = answer.json()["services"][0]
    contract = (
        "name state ready port pid since startup_seconds restarts memory_bytes memory_limit_bytes cpu_cores tasks"
    )
    assert {*contract.split(), "reason"} <= one.keys()
    assert client.get("/health").json() == {"status": "healthy", "version": "1.2", "reason": ""}
    assert client.get("/health/services/b").status_code == 503
    assert client.get("/health/services/b").json()["name"] == "b"
    for path in ("/health/services/none", "/health/services/%2e%2e", "/health/services/..%2fb", "/health/services/a/b"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["detail"], path
    fleet.connected("no bus")
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["reason"]) == (503, "no bus")
    assert client.get("/health/services").status_code == 503


def test_head_is_answered_as_get_is(root: Root, tmp_path: Path) -> None:
    _, client = client_of(root, tmp_path)
    for path in ("/", "/health", "/health/services", "/health/services/b", "/health/services/none", "/health/targets"):
        head, get = client.get(path, "HEAD"), client.get(path)
        assert (head.status_code, head.headers) == (get.status_code, get.headers), path
    assert client.get("/health", "POST").status_code == 405


def test_the_page_may_run_its_own_script_only(root: Root, tmp_path: Path) -> None:
    _, client = client_of(root, tmp_path)
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    for name in ("style-src", "script-src"):
        assert rules[name].startswith("'sha256-") and "unsafe" not in rules[name]
    digest = "LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE="  # printf x | openssl dgst -sha256 -binary | base64
    assert f"script-src 'sha256-{digest}';" in web.policy("<script>x</script>")


def test_the_metrics_of_the_contract(root: Root, tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = fleet_of(root, tmp_path, Answering(), "a")
        fleet.connected("")
        fleet.changed("a", RUNS | KILLED, 1)
        assert fleet.services().services[0].reason == "systemd: signal; the main process was ended by signal 9"
        fleet.changed("a", RUNS | {"InvocationID": "b", "NRestarts": 1, "MemoryMax": 99}, 1)
        await settle(fleet)
        exposition = metrics.Exposition(fleet, "1")
        kind, content = exposition.text("application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text") and content.endswith(b"# EOF\n")
        kind, content = exposition.text("")
        assert kind.startswith("text/plain")
        lines = content.decode().splitlines()
        for sample in (
            'up{service="a"} 1.0', 'ready{service="a"} 1.0', 'restarts_total{service="a"} 1.0',
            'failures_total{result="signal",service="a"} 1.0', 'failures_total{result="watchdog",service="a"} 0.0',
            'memory_limit_bytes{service="a"} 99.0', 'state{service="a",state="ready"} 1.0',
            'state{service="a",state="failed"} 0.0', 'last_exit_code{service="a"} 137.0',
            'startup_seconds{service="a"} 8.0', 'oom_kills_total{service="a"} 0.0',
            'cpu_seconds_total{service="a"} 0.0',
        ):  # fmt: skip
            assert f"citadel_llm_service_{sample}" in lines, sample
        assert exposition.text("")[1] is content, "made once a second"
        for version in range(100):
            exposition.text(f"application/openmetrics-text; version=1.{version}.0")
        assert len(exposition._made) < 20

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("active", "status", "ready"),
    [
        ("active", "Ready: a on http://127.0.0.1:1, started in 1 s", True),
        ("active", "Recovering: the engine (pid 7) ended", False),
        ("active", "Importing vLLM", False),
        ("active", "Loading /srv/m (2 MB)", False),
        # The server before the reload answers meanwhile.
        ("reloading", "Loading /srv/m (2 MB)", True),
    ],
)
def test_one_that_mends_itself_is_not_ready(active: str, status: str, ready: bool) -> None:
    one = Instance("a", Presence())
    one.known, one.trouble = True, ""
    one.properties = {**RUNS, "ActiveState": active, "StatusText": status}
    assert one.ready is ready
