"""Measurements: rows with figures of both sides, their ratio, and the verdict on each bound."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MET, MISSED = "met", "missed"


@dataclass(frozen=True)
class Bound:
    """Upper limit of a figure, or lower limit if `least`.

    With `ratio` the limit applies to the ratio to plain, with `start` to the ratio to plain's start time
    (seconds), otherwise to the figure itself.
    """

    limit: float
    ratio: bool = False
    least: bool = False
    start: float = 0.0

    def __str__(self) -> str:
        of = " of plain" if self.ratio else " of plain's start" if self.start else ""
        return f"{'≥' if self.least else '≤'} {self.limit:g}{of}"


@dataclass(frozen=True)
class Row:
    """One line of the table. `plain` and `ours` are the single measurements, in the order they were made.

    `plain` is empty if the plain side has no such figure. Verdicts use medians.
    """

    group: str
    what: str
    unit: str
    plain: Sequence[float]
    ours: Sequence[float]
    bounds: Sequence[Bound] = ()

    @property
    def ratio(self) -> float | None:
        """Median of ours divided by median of plain."""
        if not self.plain or not statistics.median(self.plain):
            return None
        return statistics.median(self.ours) / statistics.median(self.plain)

    def bounded(self, bound: Bound) -> float | None:
        """The value that a bound limits: the median, or its ratio to the plain side; None without a plain side."""
        return self.ratio if bound.ratio else statistics.median(self.ours) / (bound.start or 1)

    def verdicts(self) -> list[tuple[Bound, str]]:
        """Each bound and whether it is met."""
        found = []
        for bound in self.bounds:
            value = self.bounded(bound)
            met = value is not None and (value >= bound.limit if bound.least else value <= bound.limit)
            found.append((bound, MET if met else MISSED))
        return found

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "group": self.group,
            "what": self.what,
            "unit": self.unit,
            "plain": _spread(self.plain),
            "ours": _spread(self.ours),
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "bounds": [{"bound": str(bound), "verdict": verdict} for bound, verdict in self.verdicts()],
        }


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    rounded = [float(f"{value:.4g}") for value in values]
    return {
        "median": float(f"{statistics.median(values):.4g}"),
        "least": min(rounded),
        "most": max(rounded),
        "values": rounded,
    }
