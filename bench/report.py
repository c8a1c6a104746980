"""The results as JSON (bench/results.json), as a page (docs/performance.md) and as the page's plot."""

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base_tree import PROJECT

from bench.rows import MISSED, Bound, Row

RESULTS = PROJECT / "bench/results.json"
PAGE, PLOT = PROJECT / "docs/performance.md", PROJECT / "docs/performance.svg"
TEMPLATE, GNUPLOT = PROJECT / "bench/performance.in.md", PROJECT / "bench/plot.gnuplot"
HEAD = ("what", "plain", "citadel-llm", "ratio", "bound", "verdict")
NOTHING = "–"
"""Cell of the table without a figure."""
PLOTTED = ("first token", "next token")


def number(value: float) -> str:
    """A number with at least three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(row: dict[str, Any], side: str) -> str:
    spread = row[side]
    if spread is None:
        return NOTHING
    text = f"{number(spread['median'])} {row['unit']}"
    if len(spread["values"]) > 1:
        text += f" ({number(spread['least'])}–{number(spread['most'])})"
    return text


def lines(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's lines below its head; each further bound of a row has its own line."""
    found: list[tuple[str, ...]] = []
    for row in results["rows"]:
        ratio = NOTHING if row["ratio"] is None else f"{row['ratio']:.2f}"
        bounds = [(one["bound"], one["verdict"]) for one in row["bounds"]] or [("", "")]
        what = f"{row['group']}: {row['what']}"
        found.append((what, _cell(row, "plain"), _cell(row, "ours"), ratio, *bounds[0]))
        found += [("", "", "", "", *bound) for bound in bounds[1:]]
    return found


def table(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    rows = [HEAD, tuple("---" for _ in HEAD), *lines(results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def shown(results: dict[str, Any]) -> str:
    """The table for a terminal."""
    rows = [HEAD, *lines(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def page(results: dict[str, Any]) -> str:
    """The text of docs/performance.md."""
    about = results["about"]
    facts = ", ".join(f"{name} {value}" for name, value in about.items())
    return TEMPLATE.read_text(encoding="utf-8").replace("{facts}", facts).replace("{table}\n", table(results))


def plot(results: dict[str, Any]) -> None:
    """Write docs/performance.svg: the waiting times of both sides."""
    bars = [
        row
        for row in results["rows"]
        if row["plain"] and row["unit"] == "s" and row["what"].endswith(PLOTTED) and "start" in row["group"]
    ]
    data = "".join(
        f'"{row["what"].replace(" until the", "")} {row["group"].removeprefix("start ")}"\t'
        f"{row['plain']['median']}\t{row['ours']['median']}\n"
        for row in bars
    )
    script = f"output = '{PLOT}'\n$waits << END\n{data}END\n{GNUPLOT.read_text(encoding='utf-8')}"
    subprocess.run(["gnuplot"], input=script, text=True, check=True, timeout=60)


def missed(rows: Sequence[Row]) -> list[str]:
    """A message for each missed bound."""

    def measured(row: Row, bound: Bound) -> str:
        value = row.bounded(bound)
        if bound.ratio or bound.start:
            return NOTHING if value is None else f"{value:.2f}"
        return f"{number(statistics.median(row.ours))} {row.unit}"

    return [
        f"{row.group}: {row.what}: {bound}, but it is {measured(row, bound)}"
        for row in rows
        for bound, verdict in row.verdicts()
        if verdict == MISSED
    ]


def read() -> dict[str, Any]:
    """The results of the last run that was written."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def differences(results: dict[str, Any], about: dict[str, str]) -> list[str]:
    """Facts about the results' run that differ from those of another run, except the date."""
    return [f"{name} {value}" for name, value in results["about"].items() if name != "date" and value != about[name]]


def updated(results: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Results in which the rows of a later run of some groups replace the earlier rows."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["group"], row["what"], row["unit"]

    new = {key(row): row for row in part["rows"]}
    rows = [new.pop(key(row), row) for row in results["rows"]]
    return {"about": part["about"], "rows": [*rows, *new.values()]}


def write(results: dict[str, Any]) -> list[Path]:
    """Write JSON, page and plot; return their paths."""
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    plot(results)
    return [RESULTS, PAGE, PLOT]
