"""What was measured: rows of figures for both sides, their ratio, and the verdict on a bound."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MET, MISSED = "met", "missed"


@dataclass(frozen=True)
class Bound:
    """What a figure may be at most, or at least. `ratio` bounds it against the other side, else it stands alone."""

    limit: float
    ratio: bool = False
    least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.limit:g}{' of plain' if self.ratio else ''}"


@dataclass(frozen=True)
class Row:
    """One line of the table. `plain` and `ours` are the single measurements, in the order they were made.

    `plain` is empty where the other side has no such thing. The verdict is on medians.
    """

    group: str
    what: str
    unit: str
    plain: Sequence[float]
    ours: Sequence[float]
    bounds: Sequence[Bound] = ()

    @property
    def ratio(self) -> float | None:
        """Ours to theirs."""
        if not self.plain or not statistics.median(self.plain):
            return None
        return statistics.median(self.ours) / statistics.median(self.plain)

    def verdicts(self) -> list[tuple[Bound, str]]:
        """Each bound and whether it is met."""
        found = []
        for bound in self.bounds:
            value = self.ratio if bound.ratio else statistics.median(self.ours)
            met = value is not None and (value >= bound.limit if bound.least else value <= bound.limit)
            found.append((bound, MET if met else MISSED))
        return found

    def plainly(self) -> dict[str, Any]:
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
