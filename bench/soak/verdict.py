"""The verdict on a soak: which failed requests no fault explains, and what has grown."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from faults import Loses

GRACE_SEC = 1.0
"""How much longer than until the report of a failure a request may still reach the server that is ended."""
EARLIER_SEC = (25 * 60.0, 35 * 60.0)
LATER_SEC = 10 * 60.0
"""The samples that are compared: those around the first half hour, and those of the last ten minutes."""
LEAST_SEC = EARLIER_SEC[1] + LATER_SEC
"""A shorter run has no verdict on growth."""
MOST_GROWTH = 0.02
MEMORY = "memory"
"""The figure that is a proportional set size (KiB); the others are numbers."""
TABLES = frozenset({"ledger", "event", "start", "period", "peak"})
ROWS_OF_A_CHANGE = 12
"""The most events, starts and periods of a fault or a reload: of a crash loop of four failures and a restart."""


@dataclass(frozen=True)
class Window:
    """The time of a fault in one instance: from its injection to its report, and until the instance served again.

    All times are in seconds since the epoch.
    """

    fault: str
    instance: str
    loses: Loses
    begin: float
    found: float
    serving: float


@dataclass(frozen=True)
class Request:
    """A finished request; `error` is "" if it was answered as it should be. Times in seconds since the epoch."""

    instance: str
    begin: float
    end: float
    error: str


def explains(window: Window, request: Request) -> bool:
    """Whether a fault may have cost a failed request."""
    if window.instance != request.instance or request.end < window.begin:
        return False
    match window.loses:
        case Loses.NOTHING:
            return False
        case Loses.SERVER:
            return request.begin <= window.found + GRACE_SEC
        case Loses.SERVICE:
            return request.begin <= window.serving


@dataclass(frozen=True)
class Load:
    """The outcome of all requests. `sent` is empty while requests are still being sent."""

    served: Mapping[str, int]
    failed: Sequence[Request]
    sent: Mapping[str, int]


def read_load(lines: Iterable[str]) -> Load:
    """The load so far, from the lines that the load client has written; an unfinished last line is ignored."""
    served: Counter[str] = Counter()
    failed = []
    sent: dict[str, int] = {}
    for line in lines:
        if not line.endswith("\n"):
            break
        entry = json.loads(line)
        if "sent" in entry:
            sent = entry["sent"]
        elif entry["error"]:
            failed.append(Request(entry["instance"], entry["begin"], entry["end"], entry["error"]))
        else:
            served[entry["instance"]] += 1
    return Load(served, failed, sent)


def unexplained(load: Load, windows: Sequence[Window]) -> list[Request]:
    """The failed requests that no fault explains."""
    return [request for request in load.failed if not any(explains(window, request) for window in windows)]


def lost(load: Load, windows: Sequence[Window]) -> list[str]:
    """A message for each request that no fault explains, and for each instance whose requests have no outcome."""
    messages = [
        f"{request.instance}: lost a request from {request.begin:.1f} to {request.end:.1f}: {request.error}"
        for request in unexplained(load, windows)
    ]
    if not load.sent:
        messages.append("the load client has not ended: it is unknown how many requests it sent")
    for instance, number in load.sent.items():
        finished = load.served.get(instance, 0) + sum(request.instance == instance for request in load.failed)
        if finished != number:
            messages.append(f"{instance}: {number - finished} of {number} requests have no outcome")
    return messages


class Figure(NamedTuple):
    """What is watched: a figure of a role (a process, or the unit) of an instance."""

    instance: str
    role: str
    what: str

    def __str__(self) -> str:
        return f"{self.instance}, {self.role}: {self.what}"


Series = Mapping[Figure, Sequence[tuple[float, float]]]
"""The samples of each figure: seconds since the beginning, and value."""


@dataclass(frozen=True)
class Trend:
    """The low values of a figure around the first half hour and in the last ten minutes, see `low`."""

    figure: Figure
    earlier: float
    later: float

    @property
    def growth(self) -> float:
        """Relative growth; negative if the figure has shrunk."""
        if not self.earlier:
            return float("inf") if self.later else 0.0
        return self.later / self.earlier - 1

    @property
    def grew(self) -> bool:
        """Whether the figure has grown by more than allowed."""
        return self.growth > MOST_GROWTH

    def __str__(self) -> str:
        unit = " KiB" if self.figure.what == MEMORY else ""
        return f"{self.figure} {self.earlier:g} → {self.later:g}{unit} ({self.growth:+.1%})"


def low(values: Sequence[float]) -> float:
    """The value below which a tenth of the values are.

    Requests in flight raise a figure for a moment. A server keeps pages for itself after its fork server was killed,
    until the next server replaces it: that raises its share for minutes. Neither raises the low values. A leak does.
    """
    return sorted(values)[len(values) // 10]


def trends(series: Series, seconds: float) -> list[Trend]:
    """The trend of each figure in a run of this length that has samples in both times; none if the run is too short."""
    return [
        Trend(figure, low(earlier), low(later))
        for figure, earlier, later in _compared(series, seconds)
        if earlier and later
    ]


def unknown(series: Series, seconds: float) -> list[str]:
    """A message for each figure without a trend, because it has no sample in one of the two times."""
    return [
        f"{figure}: no samples in one of the times that are compared"
        for figure, earlier, later in _compared(series, seconds)
        if not (earlier and later)
    ]


def _compared(series: Series, seconds: float) -> list[tuple[Figure, list[float], list[float]]]:
    """The values of each figure in the two times that are compared."""
    if seconds < LEAST_SEC:
        return []
    return [
        (
            figure,
            [value for at, value in samples if EARLIER_SEC[0] <= at < EARLIER_SEC[1]],
            [value for at, value in samples if at >= seconds - LATER_SEC],
        )
        for figure, samples in sorted(series.items())
    ]


def grown(found: Sequence[Trend]) -> list[str]:
    """A message for each figure that has grown by more than allowed."""
    return [f"grew by more than {MOST_GROWTH:.0%}: {trend}" for trend in found if trend.grew]


Rows = Mapping[str, Mapping[str, int]]
"""The rows of each table of the monitor's store, by instance."""


def store_grew(before: Rows, after: Rows, changes: Mapping[str, int], days: int) -> list[str]:
    """A message for each table of the monitor's store that grew by other rows than those it is for.

    `changes` are the faults and reloads of each instance, `days` the days on which the run took place.
    """
    messages = []
    if after.keys() != TABLES:
        messages.append(f"the store has the tables {', '.join(sorted(after))}, not {', '.join(sorted(TABLES))}")
    for table, rows in after.items():
        for instance, number in rows.items():
            new = number - before.get(table, {}).get(instance, 0)
            match table:
                case "ledger":
                    allowed = 1 - before.get(table, {}).get(instance, 0)
                case "peak":
                    allowed = days
                case _:
                    allowed = changes.get(instance, 0) * ROWS_OF_A_CHANGE
            if new > allowed:
                messages.append(f"the store has {new} new rows of {instance} in {table}, expected at most {allowed}")
    return messages


def as_json(trend: Trend) -> dict[str, Any]:
    """For the results' file."""
    return {**trend.figure._asdict(), "earlier": trend.earlier, "later": trend.later}
