"""Measurements of a running model: start, restart, recovery, load, reload, memory. Plain and ours take turns."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from base_tree import PROJECT
from machine import Machine

from bench.rows import Bound, Row
from bench.sides import Side

PLAIN_START, OURS_START = 0.40, 30.0
"""Bounds of the contract: fraction of plain's time, and seconds."""
RECOVERY, RESTART_SEC, THROUGHPUT = 0.20, 15.0, 0.98
RELOADS = 10
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
CLIENT = PROJECT / "tests/steady_client.py"

Say = Callable[[str], None]


def starts(pair: tuple[Side, Side], *, rounds: int, say: Say, title: str, short: bool = False) -> list[Row]:
    """Measure start, restart and both recoveries with cached files; if `short`, only start and a killed engine."""
    plain, ours = pair
    # The first start of a model differs: vLLM inspects the model's class in another process and caches the result.
    for side in pair:
        side.start()
        side.stop()
    waits: list[float] = []
    times: dict[str, tuple[list[float], list[float]]] = {}

    def note(what: str, side: Side, value: float) -> None:
        times.setdefault(what, ([], []))[side is ours].append(value)
        say(f"{title}: {what}, {side.name}: {value:.1f} s")

    for _ in range(rounds):
        for side in (plain, ours):
            returned, first = side.start()
            note("start until the first token", side, first)
            if side is ours:
                waits.append(returned)
            if not short:
                note("restart until the first token", side, side.restart())
                note("main process killed, until the next token", side, side.kill_main())
            note("engine killed, until the next token", side, side.kill_engine())
            side.stop()
    bounds = {
        "restart until the first token": [Bound(RESTART_SEC)],
        "engine killed, until the next token": [
            # The contract compares with a start of the plain side, not with its recovery.
            Bound(RECOVERY, start=statistics.median(times["start until the first token"][0]))
        ],
    }
    group = f"start ({title})"
    rows = [
        Row(
            group,
            "systemctl start until it returns (plain: first token)",
            "s",
            times["start until the first token"][0],
            waits,
            [Bound(PLAIN_START, ratio=True), Bound(OURS_START)],
        )
    ]
    return rows + [Row(group, what, "s", *both, bounds.get(what, ())) for what, both in times.items()]


def cold_starts(plain: Side, ours: Side, rounds: int, say: Say, title: str) -> list[Row]:
    """Measure a start with an empty page cache, if this host allows emptying it."""
    pair: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side in (plain, ours):
            if not empty_page_cache():
                say("cold start: not measured, the page cache of this host cannot be emptied")
                return []
            first = side.start()[1]
            say(f"{title}: cold start, {side.name}: {first:.1f} s")
            pair[side is ours].append(first)
            side.stop()
    return [Row(f"start ({title})", "cold start until the first token", "s", *pair)]


def empty_page_cache() -> bool:
    """Empty the kernel's page cache; return whether this host allows it."""
    try:
        DROP_CACHES.write_text("1\n")
    except OSError:
        return False
    return True


def load(
    pair: tuple[Side, Side], *, tokenizer: str, loads: list[tuple[int, int]], rounds: int, say: Say, title: str
) -> list[Row]:
    """Measure throughput and first-token latency with vLLM's own client; both sides run, one of them idle."""
    plain, ours = pair
    for side in pair:
        side.start()
    say(f"{title}: {len(loads) * rounds * 2} measurements under load")
    task = {
        "tokenizer": tokenizer,
        "model": ours.model,
        "ports": [plain.port, ours.port],
        "rounds": rounds,
        "loads": loads,
    }
    said = ours.machine.output(
        "env", "VLLM_TARGET_DEVICE=cpu", "HF_HUB_OFFLINE=1", "/opt/citadel/env/bin/python", "-I",
        "/root/bench/serving.py", json.dumps(task), timeout=1800,
    )  # fmt: skip
    found = [json.loads(line) for line in said.splitlines() if line.startswith('{"port"')]
    rows = []
    for at_once, requests in loads:
        assert all(one["completed"] == requests for one in found if one["at_once"] == at_once), found

        def pick(side: Side, figure: str, at_once: int = at_once) -> list[float]:
            return [one[figure] for one in found if (one["port"], one["at_once"]) == (side.port, at_once)]

        for figure, unit, what, bounds in (
            ("output_throughput", "tokens/s", "throughput", [Bound(THROUGHPUT, ratio=True, least=True)]),
            ("request_throughput", "requests/s", "throughput", [Bound(THROUGHPUT, ratio=True, least=True)]),
            ("median_ttft_ms", "ms", "first token after", []),
        ):
            values = pick(plain, figure), pick(ours, figure)
            rows.append(Row(f"load ({title})", f"{what}, {at_once} at a time", unit, *values, bounds))
    for side in (plain, ours):
        side.stop()
    return rows


def reload_under_load(plain: Side, ours: Side, say: Say) -> list[Row]:
    """Count failed requests of a steady client during ten reloads; the plain side is restarted once instead."""
    counts: list[tuple[float, float, float]] = []
    for side, verb, times in ((plain, "restart", 1), (ours, "reload", RELOADS)):
        side.start()
        machine = side.machine
        machine.write("/root/bench/steady_client.py", CLIENT.read_text(encoding="utf-8"))
        url = f"http://127.0.0.1:{side.port}"
        ask = f"/opt/citadel/env/bin/python -I /root/bench/steady_client.py {url}/v1/completions {side.model}"
        first = f"python3 -I /root/bench/first_token.py {url} {side.model}"
        script = f"""
            rm -f /root/enough; {ask} /root/enough >/root/asked & sleep 2
            for turn in $(seq {times}); do
                systemctl {verb} {side.unit} || exit 1; {first}; sleep 1
            done >/dev/null
            touch /root/enough; wait"""
        begin = time.monotonic()
        machine.run("sh", "-c", script, timeout=900)
        if side is ours:
            journal = machine.output("journalctl", "-q", "-o", "cat", "-u", side.unit)
            # For systemd, a reload that returns to the old settings succeeds too.
            done = journal.rpartition(f"Starting {side.unit}")[2].count(f"Ready: {side.model} on ")
            if done != times + 1:
                raise RuntimeError(f"{times} reloads started {done - 1} new servers")
        asked = json.loads(machine.output("cat", "/root/asked"))
        failed, answered = len(asked["failures"]), sum(asked["counts"].values())
        counts.append((failed, answered, asked["longest"]))
        say(f"{times} times {verb} under load, {side.name}: {failed} failed, {answered} answered, the slowest "
            f"after {asked['longest']:.1f} s, in {time.monotonic() - begin:.0f} s")  # fmt: skip
        side.stop()
    return [
        Row(
            "reload",
            f"requests that failed, 20 a second, {RELOADS} reloads (plain: 1 restart)",
            "requests",
            [counts[0][0]],
            [counts[1][0]],
            [Bound(0)],
        ),
        Row("reload", "requests that were answered meanwhile", "requests", [counts[0][1]], [counts[1][1]]),
        Row("reload", "longest that an answered one took", "s", [counts[0][2]], [counts[1][2]]),
    ]


def memory(pairs: list[tuple[Side, Side]], say: Say) -> list[Row]:
    """Proportional set size of one, two and three instances of the same model after their first answers."""
    rows = []
    taken: tuple[list[float], list[float]] = ([], [])
    for which in (0, 1):
        running: list[Side] = []
        for pair in pairs:
            side = pair[which]
            side.start()
            running.append(side)
            taken[which].append(sum(one.memory() for one in running))
            say(f"memory of {len(running)}, {side.name}: {taken[which][-1]:.0f} MiB")
        for side in running:
            side.stop()
    for number in range(len(pairs)):
        before = [values[number - 1] if number else 0.0 for values in taken]
        what = "memory of the first instance" if not number else f"memory that instance {number + 1} adds"
        plain, ours = ([values[number] - less] for values, less in zip(taken, before, strict=True))
        rows.append(Row("memory", f"{what} (PSS)", "MiB", plain, ours))
    return rows


def floor(machine: Machine, starts: list[Row], rounds: int, say: Say) -> list[Row]:
    """Minimum time of a start: one import of the serving modules, and an engine from the fork to its first token.

    The second part is the recovery time of a killed engine in `starts`.
    """
    values = []
    (engine,) = (row.ours for row in starts if row.what.startswith("engine killed"))
    for _ in range(rounds):
        begin = time.monotonic()
        machine.run(
            "env", "VLLM_TARGET_DEVICE=cpu", "TORCHDYNAMO_DISABLE=1", "/opt/citadel/env/bin/python", "-I", "-c",
            "import hxp_enterprise_llm.worker.preload",
        )  # fmt: skip
        values.append(time.monotonic() - begin)
    say(f"one import of the serving modules: {statistics.median(values):.1f} s")
    both = [one + other for one, other in zip(values, engine, strict=True)]
    return [
        Row("start (test)", "floor: one import of what serves", "s", [], values),
        Row("start (test)", "floor: the same, and an engine's first token", "s", [], both),
    ]
