"""The monitor's counters of starts and failures, and its periods of uptime."""

from typing import Any

import pytest

from hxp_enterprise_llm.control.failures import exit_code, kind_of, reason_of
from hxp_enterprise_llm.monitoring import cgroups
from hxp_enterprise_llm.monitoring.instance import Instance
from hxp_enterprise_llm.monitoring.ledger import Event, Ledger, Meter, Start
from hxp_enterprise_llm.monitoring.presence import LONGEST_GAP_SEC, Presence
from hxp_enterprise_llm.protocol.failures import Kind
from hxp_enterprise_llm.protocol.state import InstanceState, Phase

from .monitored import KILLED, RUNS, SECOND


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
def test_failure_kind_follows_result_and_exit_status(result: str, status: int, kind: str | None) -> None:
    assert kind_of({"Result": result, "ExecMainStatus": status}) == kind


def test_exit_code_follows_shell_convention() -> None:
    assert exit_code(KILLED) == 137
    assert exit_code(KILLED | {"ExecMainCode": 1, "ExecMainStatus": 70}) == 70
    assert exit_code(RUNS) is None
    assert (
        reason_of(KILLED, InstanceState(phase=Phase.READY, reason="on a port"))
        == "the main process was killed by SIGKILL"
    )
    aborted = KILLED | {"Result": "watchdog", "ExecMainStatus": 6}
    assert reason_of(aborted, None) == "systemd: watchdog; the main process was killed by SIGABRT"
    died = {
        "Result": "exit-code",
        "ExecMainCode": 1,
        "ExecMainStatus": 70,
        "ExecMainExitTimestamp": 1,
        "StatusText": "It died",
    }
    assert reason_of(died, None) == "It died", "a main process of an earlier version, in the text of its unit"
    assert reason_of(died, InstanceState(phase=Phase.FAILED, reason="no engine")) == "no engine"
    said_nothing = reason_of(died, InstanceState(phase=Phase.READY))
    assert said_nothing == "systemd: exit-code; the main process ended with exit status 70"


def test_start_is_counted_once_with_its_duration() -> None:
    ledger = Ledger()
    assert ledger.take_unit(RUNS | {"ActiveState": "activating", "ActiveEnterTimestamp": 0}, 1, 105) == []
    assert ledger.take_unit(RUNS, 1, 108) == [Start(at=108, seconds=8)]
    assert ledger.take_unit(RUNS, 1, 109) == []
    # A ledger that is read again, as after a restart of the monitor, still knows the start.
    assert Ledger.model_validate_json(ledger.model_dump_json()).take_unit(RUNS, 1, 110) == []
    assert ledger.startup_seconds == 8
    assert ledger.take_state(InstanceState(startup_seconds=3.0), 120) == []
    assert ledger.startup_seconds == 3


def test_implausible_timestamps_are_ignored() -> None:
    ledger = Ledger()
    # The clock was set from 1970 to today during the start, and back after the end.
    late = RUNS | {"ActiveEnterTimestamp": 1_790_000_000 * SECOND}
    assert ledger.take_unit(late, 1, 1.79e9) == []
    assert (ledger.started, ledger.startup_seconds) == (True, None)
    (failure,) = ledger.take_unit(late | KILLED | {"ExecMainExitTimestamp": 1_800_000_000 * SECOND}, 1, 1.79e9)
    assert failure.at == 1.79e9


def test_killed_main_process_counts_as_one_failure_and_one_restart() -> None:
    ledger = Ledger()
    ledger.take_unit(RUNS, 1, 108)
    (failure,) = ledger.take_unit(RUNS | KILLED, 1, 201)
    assert failure == Event(at=200, what="signal", reason="the main process was killed by SIGKILL")
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
def test_oom_kill_count_identifies_out_of_memory_kill(before: int, at_the_end: int | None, kind: Kind) -> None:
    ledger = Ledger()
    ledger.take_unit(RUNS, 1, 108)
    ledger.take_usage(cgroups.Usage(oom_kills=before))
    (failure,) = ledger.take_unit(RUNS | KILLED, 1, 201, at_the_end)
    assert isinstance(failure, Event) and (failure.what, failure.at) == (kind, 200)
    assert ("memory limit" in failure.reason) is (kind is Kind.OUT_OF_MEMORY)
    # Reported again after the group is gone or was read, it remains one failure.
    ledger.take_usage(cgroups.Usage(oom_kills=at_the_end))
    assert ledger.take_unit(RUNS | KILLED, 1, 202) == ledger.take_unit(RUNS | KILLED, 1, 203, at_the_end) == []
    assert ledger.failures == {kind: 1}
    other = RUNS | KILLED | {"InvocationID": "b", "ExecMainStatus": 15}
    (failure,) = ledger.take_unit(other, 1, 300, 9)
    assert isinstance(failure, Event) and failure.what == Kind.SIGNAL, "the kernel sends SIGKILL only"


def test_clean_stop_counts_neither_failure_nor_restart() -> None:
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


def test_start_limit_is_counted_in_addition_to_the_failure() -> None:
    ledger = Ledger()
    refused = RUNS | {"Result": "exit-code", "ExecMainStatus": 70, "ExecMainCode": 1, "ExecMainExitTimestamp": SECOND}
    ledger.take_unit(refused, 1, 1)
    ledger.take_unit(refused | {"Result": "start-limit-hit"}, 1, 2)
    assert ledger.failures == {Kind.ENGINE_DIED: 1, Kind.START_LIMIT_HIT: 1}


def test_restart_count_never_decreases() -> None:
    ledger = Ledger()
    for boot, seen, total in ((1, 2, 2), (1, 2, 2), (1, 3, 3), (1, 0, 3), (1, 1, 4), (2, 1, 5), (2, 1, 5)):
        ledger.take_unit({"NRestarts": seen}, boot, 1)
        assert ledger.restarts == total, (boot, seen)


def test_recovered_failures_are_counted_once_per_invocation() -> None:
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
    # A lowered count has no effect.
    assert ledger.take_state(InstanceState(failures={Kind.ENGINE_DIED: 1}), 160) == []
    assert ledger.take_state(mended, 160) == []
    ledger.take_unit(RUNS | {"InvocationID": "b"}, 1, 300)
    assert len(ledger.take_state(mended, 160)) == 1
    assert ledger.failures == {Kind.ENGINE_DIED: 4}
    assert ledger.last_failure and ledger.last_failure.reason == "r"


def test_meter_never_decreases() -> None:
    meter = Meter()
    for reading, total in ((5, 5), (7, 7), (None, 7), (2, 9), (3, 10)):
        meter.read(reading)
        assert meter.total == total


def test_kernel_memory_peak_is_used_only_after_a_rise() -> None:
    ledger = Ledger()
    readings = [(10, 90), (10, 90), (20, 90), (10, 95)]
    taken = [ledger.take_usage(cgroups.Usage(memory_bytes=now, memory_peak_bytes=peak)) for now, peak in readings]
    assert taken == [90, 10, 20, 95]


# Periods


def test_periods_are_contiguous() -> None:
    presence = Presence()
    assert presence.seen(True, since=90, now=100) == [(True, 90, 100)]
    assert presence.seen(True, 90, 110) == [(True, 90, 110)]
    assert presence.seen(False, 110, 120) == [(True, 90, 120)]
    assert presence.seen(True, 130, 130) == [(False, 120, 130)]
    assert presence.seen(None, 140, 140) == [(True, 130, 140)]
    assert presence.seen(None, 140, 150) == []
    assert presence.seen(True, 160, 160) == []
    assert presence.seen(True, 160, 170) == [(True, 160, 170)]


def test_monitor_downtime_counts_as_uptime_of_running_instances() -> None:
    assert Presence(until=100).seen(True, since=50, now=500) == [(True, 100, 500)]
    assert Presence(until=100).seen(True, since=400, now=500) == [(True, 400, 500)]
    # The start of the downtime is unknown.
    assert Presence(until=100).seen(False, since=50, now=500) == []


def test_clock_jump_adds_no_period() -> None:
    presence = Presence()
    presence.seen(True, 90, 100)
    assert presence.seen(True, 90, 100 + LONGEST_GAP_SEC + 1) == []
    assert presence.seen(True, 90, 50) == []
    assert presence.seen(True, 90, 60) == [(True, 50, 60)]


def test_uptime_follows_unit_state_and_probe() -> None:
    instance = Instance("a", Presence())

    def then(active: str, sub: str, now: float, **properties: Any) -> bool | None:
        instance.properties |= {"ActiveState": active, "SubState": sub, **properties}
        return instance.uptime_counts(now)

    assert instance.uptime_counts(0) is None, "its state is unknown"
    instance.known = True
    assert then("inactive", "dead", 100) is None
    assert then("activating", "start", 110, StateChangeTimestamp=105 * SECOND) is None, "a start may take some time"
    assert then("activating", "start", 136) is False, "but not more than promised"
    assert then("active", "running", 140) is None, "it has not been probed"
    instance.problem = ""
    assert then("active", "running", 141) is True
    assert then("reloading", "reload", 142) is True
    assert then("deactivating", "stop", 143, Result="success") is None
    assert then("deactivating", "stop", 143, Result="signal") is False
    assert then("activating", "auto-restart", 144) is False
    assert then("activating", "start", 145, StateChangeTimestamp=145 * SECOND) is False, "it recovers from a failure"
    assert then("active", "running", 150) is True
    instance.problem = "answers 500"
    assert then("active", "running", 150) is False
    assert then("failed", "failed", 151) is False
    assert then("inactive", "dead", 152) is None
    assert then("activating", "start", 153, StateChangeTimestamp=153 * SECOND) is None
