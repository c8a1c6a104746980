"""The results of a soak: bench/soak.json, the curve docs/soak.svg and a section of docs/faults.md."""

import json
import statistics
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base_tree import PROJECT

from bench.soak.verdict import EARLIER_SEC, MEMORY, MOST_GROWTH, Series

RESULTS, PLOT, PAGE = PROJECT / "bench/soak.json", PROJECT / "docs/soak.svg", PROJECT / "docs/faults.md"
GNUPLOT = PROJECT / "bench/soak/plot.gnuplot"
BEGIN, END = "<!-- written by ./build.sh soak -->\n", "<!-- end of what ./build.sh soak writes -->\n"
MINUTE = 60
KIB_PER_MIB = 1024


def curves(series: Series) -> dict[str, list[tuple[int, float]]]:
    """For each instance and the monitor: minute and memory of its processes (MiB), of minutes with all of them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for instance in sorted({figure.instance for figure in series}):
        by_minute = []
        for figure, samples in series.items():
            if (figure.instance, figure.what) == (instance, MEMORY):
                minutes: dict[int, list[float]] = {}
                for at, value in samples:
                    minutes.setdefault(int(at // MINUTE), []).append(value)
                by_minute.append({minute: statistics.median(values) for minute, values in minutes.items()})
        common = sorted(set.intersection(*(set(one) for one in by_minute))) if by_minute else []
        found[instance] = [(minute, sum(one[minute] for one in by_minute) / KIB_PER_MIB) for minute in common]
    return found


def plotted(memory: dict[str, list[list[float]]]) -> str:
    """gnuplot's data: for each curve a named block of minute and memory, relative to that around the first half hour
    (per cent).
    """
    blocks = []
    for name, points in memory.items():
        basis = statistics.median(
            value for minute, value in points if EARLIER_SEC[0] <= minute * MINUTE < EARLIER_SEC[1]
        )
        lines = "".join(f"{minute}\t{value / basis * 100:.2f}\n" for minute, value in points)
        blocks.append(f'"{name}"\n{lines}')
    return "\n\n".join(blocks)


def plot(results: dict[str, Any], path: Path = PLOT) -> None:
    """Write the curve of the memory."""
    script = (
        f"output = '{path}'\nbound = {100 * (1 + MOST_GROWTH):g}\ncurves = {len(results['memory'])}\n"
        f"$memory << END\n{plotted(results['memory'])}END\n{GNUPLOT.read_text(encoding='utf-8')}"
    )
    subprocess.run(["gnuplot"], input=script, text=True, check=True, timeout=60)


def section(results: dict[str, Any]) -> str:
    """The section of docs/faults.md."""
    about, requests = results["about"], results["requests"]
    facts = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = [
        f"The last run: {facts}.",
        "",
        "![Memory of the instances and of the monitor](soak.svg)",
        "",
        "| instance | requests answered | lost in a fault that explains it | lost otherwise |",
        "|---|---|---|---|",
        *(
            f"| {name} | {one['served']:,} | {one['failed'] - one['unexplained']:,} | {one['unexplained']} |"
            for name, one in requests.items()
        ),
        "",
        "| fault or act | times |",
        "|---|---|",
        *(f"| {what} | {times} |" for what, times in sorted(Counter(results["happened"]).items())),
    ]
    if results["trends"]:
        lines += ["", "| figure | minutes 25–35 | last ten minutes | growth |", "|---|---|---|---|"]
        lines += map(_line, results["trends"])
    return "".join(f"{line}\n" for line in lines)


def _line(trend: dict[str, Any]) -> str:
    earlier, later = trend["earlier"], trend["later"]
    growth = later / earlier - 1 if earlier else 0.0
    if trend["what"] == MEMORY:
        cells = [f"{value / KIB_PER_MIB:,.1f} MiB" for value in (earlier, later)]
    else:
        cells = [f"{value:g}" for value in (earlier, later)]
    return f"| {trend['instance']}, {trend['role']}: {trend['what']} | {cells[0]} | {cells[1]} | {growth:+.1%} |"


def replaced(page: str, text: str) -> str:
    """A page whose section has this text."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"the page has no line {BEGIN.strip()} or {END.strip()}"
    return f"{before}{BEGIN}{text}{END}{after}"


def write(results: dict[str, Any]) -> Sequence[Path]:
    """Write JSON, curve and section; return their paths."""
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(results)
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), section(results)), encoding="utf-8")
    return RESULTS, PLOT, PAGE
