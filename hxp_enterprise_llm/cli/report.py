"""`citadel-llm report`: uptime, start-up times and failures of the instances, compared with the goals."""

import time
from collections.abc import Sequence

from hxp_enterprise_llm.cli import output
from hxp_enterprise_llm.monitoring import figures
from hxp_enterprise_llm.monitoring.figures import UPTIME_GOAL, Figures, Verdict
from hxp_enterprise_llm.monitoring.instance import STARTUP_GOAL_SEC
from hxp_enterprise_llm.settings.values import instance_names

COLOURS = {Verdict.GOOD: "green", Verdict.MISSED: "red"}


def report(days: float, for_program: bool) -> None:
    """Print the figures of all instances."""
    found = figures.read(days, time.time(), instance_names())
    if for_program:
        output.as_json(
            {
                "days": days,
                "uptime_goal": UPTIME_GOAL,
                "startup_goal_seconds": STARTUP_GOAL_SEC,
                "instances": [one.model_dump(mode="json") for one in found],
            }
        )
        return
    titles = ("NAME", "UPTIME %", "START p50", "START p95", "RESTARTS", "FAILURES", "PEAK GB", "VERDICT")
    output.table(titles, map(_row, found))
    if not any(one.verdict is not Verdict.NO_DATA for one in found):
        output.say()
        output.say(f"The monitor has no record of a running instance in the last {days:g} days.")
    output.say()
    output.say(f"Goals: uptime {UPTIME_GOAL:.1%}, start-up under {STARTUP_GOAL_SEC:g} s. Last {days:g} days.")


def _row(one: Figures) -> Sequence[output.Part]:
    failures = ", ".join(f"{count} {kind}" for kind, count in one.failures.items())
    verdict = one.verdict.value + (f": {', '.join(one.missed)}" if one.missed else "")
    return (
        one.name,
        # Truncated, because 99.9996 must not be shown as 100.
        output.NOTHING if one.uptime_ratio is None else f"{int(one.uptime_ratio * 100_000) / 1000:.3f}",
        _seconds(one.startup_p50_seconds),
        _seconds(one.startup_p95_seconds),
        str(one.restarts),
        failures or output.NOTHING,
        f"{output.gigabytes(one.memory_peak_bytes)}/{output.gigabytes(one.memory_limit_bytes)}",
        output.Coloured(verdict, COLOURS.get(one.verdict)),
    )


def _seconds(value: float | None) -> str:
    return output.NOTHING if value is None else f"{value:.1f} s"
