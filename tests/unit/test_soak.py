"""The soak's plan, its verdict and its report, with made-up data."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from faults import FAULTS, Loses, Row
from machine import Machine

from bench.soak import report
from bench.soak.__main__ import Soak
from bench.soak.clients import hostile
from bench.soak.plan import MOST_FAILURES, WITHIN_SEC, Act, Step, Subject, plan
from bench.soak.verdict import (
    GRACE_SEC,
    TABLES,
    Figure,
    Load,
    Request,
    Window,
    explains,
    grown,
    lost,
    read_load,
    store_grew,
    trends,
    unexplained,
    unknown,
)

HANGS = {"VLLM_ARGS": "'--logits-processors hanging:Hanging'"}
OPEN = Subject("open", {**HANGS, "MEMORY_LIMIT_GB": 2}, frozenset(Loses), frozenset({Act.RELOAD, Act.HOSTILE}))
KEYED = Subject("keyed", HANGS, frozenset({Loses.NOTHING, Loses.SERVER}), frozenset(Act))
SPARED = Subject("spared", {}, frozenset(), frozenset({Act.HOSTILE}))
SUBJECTS = (OPEN, KEYED, SPARED)
HOUR = 3600.0
MEMORY = Figure("open", "engine", "memory")
DESCRIPTORS = Figure("open", "main process", "descriptors")


def same(steps: list[Step]) -> list[tuple[Any, ...]]:
    return [(step.at, step.fault.name, step.victim.name, step.act, step.subject.name) for step in steps]


def test_a_seed_repeats_the_plan() -> None:
    assert same(plan(7, HOUR, 60, SUBJECTS)) == same(plan(7, HOUR, 60, SUBJECTS))
    assert same(plan(7, HOUR, 60, SUBJECTS)) != same(plan(8, HOUR, 60, SUBJECTS))


@pytest.mark.parametrize("seed", range(20))
def test_plan_has_every_fault_and_act_equally_often(seed: int) -> None:
    steps = plan(seed, 2 * HOUR, 60, SUBJECTS)
    assert [step.at for step in steps] == [60.0 * number for number in range(1, 120)]
    times = Counter(step.fault.name for step in steps)
    assert times.keys() == {fault.name for fault in FAULTS}
    assert max(times.values()) - min(times.values()) <= 2
    acts = Counter((step.act, step.subject.name) for step in steps)
    assert len(acts) == 6 and max(acts.values()) - min(acts.values()) <= 1


@pytest.mark.parametrize(("seed", "every"), [(seed, every) for seed in range(5) for every in (20.0, 60.0)])
def test_plan_injects_only_what_an_instance_takes_and_recovers_from(seed: int, every: float) -> None:
    steps = plan(seed, HOUR, every, SUBJECTS)
    for step in steps:
        assert step.victim.takes(step.fault) and step.act in step.subject.acts
    for subject in SUBJECTS:
        failures: list[float] = []
        for step in [step for step in steps if step.victim is subject]:
            if step.fault.loses is Loses.SERVICE:
                failures.clear()
            elif step.fault.loses is Loses.SERVER:
                failures = [at for at in failures if step.at - at < WITHIN_SEC] + [step.at]
                assert len(failures) <= MOST_FAILURES


def test_an_instance_takes_the_faults_whose_settings_it_has() -> None:
    assert all(OPEN.takes(fault) for fault in FAULTS)
    names = {fault.name for fault in FAULTS if KEYED.takes(fault)}
    assert "SIGKILL of VLLM::EngineCore" in names and "engine hangs in a step (spins), /health answers" in names
    assert not names & {"engine grows beyond MEMORY_LIMIT_GB", "SIGKILL of the main process"}
    assert not any(SPARED.takes(fault) for fault in FAULTS)


SERVER = Window("engine killed", "open", Loses.SERVER, begin=100, found=101, serving=103)


@pytest.mark.parametrize(
    ("begin", "end", "explained"),
    [
        (90, 99.9, False),  # over before the fault
        (90, 100.5, True),
        (100.5, 100.9, True),
        (101 + GRACE_SEC, 103, True),
        (101.1 + GRACE_SEC, 103, False),  # for the next server
    ],
)
def test_a_killed_server_explains_requests_in_flight(begin: float, end: float, explained: bool) -> None:
    assert explains(SERVER, Request("open", begin, end, "reset")) is explained


@pytest.mark.parametrize(("begin", "end", "explained"), [(90, 99, False), (102.9, 110, True), (103.1, 104, False)])
def test_a_killed_main_process_explains_requests_until_it_serves(begin: float, end: float, explained: bool) -> None:
    window = replace(SERVER, loses=Loses.SERVICE)
    assert explains(window, Request("open", begin, end, "refused")) is explained


def test_a_fault_explains_nothing_of_other_instances_and_may_explain_nothing() -> None:
    request = Request("open", 100, 100.5, "reset")
    assert not explains(replace(SERVER, instance="keyed"), request)
    assert not explains(replace(SERVER, loses=Loses.NOTHING), request)


def lines(*entries: dict[str, Any]) -> list[str]:
    return [f"{json.dumps(entry)}\n" for entry in entries]


def outcome(begin: float, error: str = "") -> dict[str, Any]:
    return {"instance": "open", "begin": begin, "end": begin + 0.5, "streamed": True, "error": error}


def test_lost_requests_are_those_that_no_fault_explains() -> None:
    load = read_load(lines(outcome(1), outcome(100, "reset"), outcome(200, "reset"), {"sent": {"open": 3}}))
    assert load.served == {"open": 1}
    assert [request.begin for request in unexplained(load, [SERVER])] == [200]
    assert len(lost(load, [SERVER])) == 1 and "200.0" in lost(load, [SERVER])[0]
    assert len(lost(load, [])) == 2


def test_requests_without_outcome_are_lost() -> None:
    assert lost(read_load(lines(outcome(1), {"sent": {"open": 3}})), []) == ["open: 2 of 3 requests have no outcome"]
    assert "load client has not ended" in lost(read_load(lines(outcome(1))), [])[0]


def test_unfinished_last_line_is_ignored() -> None:
    assert read_load([*lines(outcome(1)), '{"instance": "op']) == Load({"open": 1}, [], {})


def rising(per_hour: float, noise: float = 0.0, start: float = 1000.0) -> list[tuple[float, float]]:
    """A sample every five seconds of two hours; every seventh deviates by `noise`."""
    return [
        (at, start * (1 + per_hour * at / HOUR) + (noise if number % 7 == 0 else 0))
        for number, at in enumerate(float(at) for at in range(0, 7200, 5))
    ]


@pytest.mark.parametrize(
    ("per_hour", "noise", "message"),
    [
        (0.0, 0.0, False),
        (0.01, 0.0, False),  # 1.4 % between the two times, which are 85 minutes apart
        (0.02, 0.0, True),
        (-0.5, 0.0, False),
        (0.0, 5000.0, False),  # bursts
        (0.02, 5000.0, True),
    ],
)
def test_growth_compares_low_values(per_hour: float, noise: float, message: bool) -> None:
    found = trends({MEMORY: rising(per_hour, noise)}, 2 * HOUR)
    assert bool(grown(found)) is message
    assert len(found) == 1


def test_what_grows_before_the_first_half_hour_does_not_count() -> None:
    samples = [(at, 1000.0 if at < 1400 else 2000.0) for at, _ in rising(0)]
    assert not grown(trends({MEMORY: samples}, 2 * HOUR))


def test_a_state_of_some_minutes_is_no_growth() -> None:
    """A server that shares less, in seven of the last ten minutes and in none of those it is compared with."""
    samples = [(at, 1000.0 if at < 6600 or at >= 7020 else 1200.0) for at, _ in rising(0)]
    assert not grown(trends({MEMORY: samples}, 2 * HOUR))


def test_a_leaked_descriptor_counts_and_the_message_names_it() -> None:
    samples = [(at, 30.0 + at // HOUR) for at, _ in rising(0)]
    (message,) = grown(trends({DESCRIPTORS: samples}, 2 * HOUR))
    assert "open, main process: descriptors 30 → 31" in message


def test_files_where_there_were_none_have_grown() -> None:
    samples = [(at, 0.0 if at < HOUR else 1.0) for at, _ in rising(0)]
    assert grown(trends({Figure("open", "unit", "files in /tmp"): samples}, 2 * HOUR))
    assert not grown(trends({Figure("open", "unit", "files in /tmp"): [(at, 0.0) for at, _ in samples]}, 2 * HOUR))


def test_short_run_has_no_trend_and_missing_samples_are_reported() -> None:
    assert not trends({MEMORY: rising(1)}, 0.5 * HOUR) and not unknown({MEMORY: rising(1)}, 0.5 * HOUR)
    series = {MEMORY: [(at, value) for at, value in rising(0) if at < HOUR], DESCRIPTORS: rising(0)}
    assert [trend.figure for trend in trends(series, 2 * HOUR)] == [DESCRIPTORS]
    assert [message.startswith(f"{MEMORY}: no samples") for message in unknown(series, 2 * HOUR)] == [True]


class Failing(Soak):
    """A soak whose second step fails; it has no machine."""

    def __init__(self) -> None:
        super().__init__(cast("Machine", None), 60)
        self.taken: list[Step] = []

    def lasted(self) -> float:
        return 60.0 * len(self.taken)

    def step(self, step: Step) -> None:
        self.taken.append(step)
        assert len(self.taken) < 2, "open does not serve"


def test_hostile_clients_are_rows_of_the_corpus() -> None:
    for row, number in hostile.rows():
        assert 0 < len(hostile.data(row)) <= 1 << 20, row.name
        assert number <= max(row.connections, 100)


def test_failed_step_ends_the_run_and_keeps_what_was_measured(tmp_path: Path) -> None:
    soak = Failing()
    soak.series[MEMORY] = [(5.0, 1.0)]
    soak.run(plan(7, HOUR, 60, SUBJECTS), HOUR)
    assert len(soak.taken) == 2 and len(soak.wrong) == 1 and "open does not serve" in soak.wrong[0]
    soak.write_samples(tmp_path / "samples")
    assert json.loads((tmp_path / "samples").read_text()) == [{**MEMORY._asdict(), "samples": [[5.0, 1.0]]}]


def store(**more: int) -> dict[str, dict[str, int]]:
    return {table: {"open": more.get(table, 1)} for table in TABLES}


def test_store_may_grow_by_rows_of_changes_only() -> None:
    assert store_grew(store(), store(event=5, period=3, peak=2), {"open": 1}, days=1) == []
    assert len(store_grew(store(), store(event=2), {}, days=1)) == 1
    assert len(store_grew(store(), store(peak=4), {}, days=2)) == 1
    assert len(store_grew(store(), {**store(), "surprise": {}}, {}, days=1)) == 1


def results() -> dict[str, Any]:
    memory = {name: [[minute, 1000.0 + minute] for minute in range(120)] for name in ("monitor", "open")}
    return {
        "about": {"hours": "2.0", "seed": "7"},
        "requests": {"open": {"served": 14000, "failed": 12, "unexplained": 0}},
        "happened": ["reload", "reload", "SIGKILL of the main process"],
        "trends": [{"instance": "open", "role": "engine", "what": "memory", "earlier": 2048.0, "later": 2058.0}],
        "memory": memory,
    }


def test_section_has_requests_faults_and_trends() -> None:
    text = report.section(results())
    assert "| open | 14,000 | 12 | 0 |" in text
    assert "| reload | 2 |" in text
    assert "| open, engine: memory | 2.0 MiB | 2.0 MiB | +0.5% |" in text


def test_curves_are_sums_of_processes_and_relative_to_the_first_half_hour() -> None:
    series = {
        Figure("open", "engine", "memory"): [(0.0, 1024.0), (61.0, 2048.0), (62.0, 2048.0)],
        Figure("open", "server", "memory"): [(61.0, 1024.0), (130.0, 1.0)],
        Figure("open", "server", "threads"): [(0.0, 5.0)],
    }
    assert report.curves(series) == {"open": [(1, 3.0)]}
    blocks = report.plotted(results()["memory"])
    assert blocks.count("\n\n\n") == 1 and "\n30\t100.05\n" in blocks


def test_section_is_replaced_in_the_page() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    once = report.replaced(page, "one\n")
    assert report.replaced(once, "two\n") == once.replace("one\n", "two\n")
    assert len(once.splitlines()) <= len(page.splitlines()) and once.startswith("# Failures")


def test_outcome_of_a_fault_is_compared_with_the_expected_one() -> None:
    fault = FAULTS[0]
    row = Row(0.0, fault.name, 0.1, "The engine (pid 7) ended", "none", "engine-died +1", 1.0)
    assert fault.unexpected(row) == []
    assert fault.unexpected(row._replace(exit_status="70", counters="engine-died +2")) == ["70", "engine-died +2"]
