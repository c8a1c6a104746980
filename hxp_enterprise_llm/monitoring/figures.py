"""What the monitor's memory says of each instance over the last days: the figures of `citadel-llm report`."""

import contextlib
import math
import sqlite3
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hxp_enterprise_llm.monitoring.failures import Kind
from hxp_enterprise_llm.monitoring.instance import STARTUP_GOAL_SEC
from hxp_enterprise_llm.monitoring.ledger import DAY_SEC
from hxp_enterprise_llm.monitoring.store import FILE
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted

UPTIME_GOAL = 0.999
MEMORY_GOAL = 0.95
"""A peak above this share of the limit is near the point where the kernel ends the service (its MemoryHigh)."""


class NoFigures(CitadelError):
    """The monitor has remembered nothing that can be read."""

    code = "no-figures"


class Verdict(StrEnum):
    """How an instance did."""

    GOOD = "good"
    MISSED = "missed"
    NO_DATA = "no data"


class Figures(BaseModel):
    """One instance over the last days. Times in seconds, memory in bytes; None is what did not happen.

    `uptime_ratio` is the time that it was ready of `watched_seconds`, the time that it should have run and the monitor
    saw. `restarts` are those that systemd did by itself. `missed` says in words which goals were missed.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    verdict: Verdict
    missed: tuple[str, ...]
    uptime_ratio: float | None
    watched_seconds: float
    starts: int
    startup_p50_seconds: float | None
    startup_p95_seconds: float | None
    restarts: int
    failures: dict[Kind, int]
    memory_peak_bytes: int | None
    memory_limit_bytes: int | None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of them do not exceed (nearest rank); None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def read(days: float, now: float, names: Sequence[str] = (), file: Path = FILE) -> list[Figures]:
    """The figures of all instances that the monitor has seen in the last `days`, and of `names`, by name.

    Raises NotPermitted if this user may not read the file, NoFigures if there is none or it is not the monitor's.
    """
    since = now - days * DAY_SEC
    try:
        with contextlib.closing(_open(file)) as database:
            # One look for all questions.
            database.execute("BEGIN")
            return _read(database, since, now, names)
    except (sqlite3.Error, ValidationError, TypeError) as error:
        raise NoFigures(f"{file} cannot be read ({error}); systemctl status citadel-llm-monitor") from None


def _open(file: Path) -> sqlite3.Connection:
    try:
        with file.open("rb"):
            pass
    except FileNotFoundError:
        raise NoFigures(
            "the monitor has written nothing yet; it does within seconds once it runs: "
            "systemctl enable --now citadel-llm-monitor"
        ) from None
    except OSError as error:
        raise NotPermitted(f"{file} cannot be read ({error.strerror}); run it as root, with sudo") from None
    # While the monitor does not run there is no write-ahead log, and a reader may not be able to make one.
    mode = "mode=ro" if Path(f"{file}-wal").exists() else "immutable=1"
    return sqlite3.connect(f"file:{file}?{mode}", uri=True, timeout=5, isolation_level=None)


def _read(database: sqlite3.Connection, since: float, now: float, names: Sequence[str]) -> list[Figures]:
    window = {"since": since, "now": now}
    seen = "until > :since AND until > at AND at < :now"
    periods = {
        name: (up, both)
        for name, up, both in database.execute(
            f"SELECT instance, SUM(up * (until - MAX(at, :since))), SUM(until - MAX(at, :since)) FROM period"  # noqa: S608  our own words
            f" WHERE {seen} GROUP BY instance",
            window,
        )
    }
    starts: dict[str, list[float]] = {}
    for name, seconds in database.execute("SELECT instance, seconds FROM start WHERE at > :since", window):
        starts.setdefault(name, []).append(seconds)
    events: dict[str, dict[str, int]] = {}
    counted = "SELECT instance, what, SUM(count) FROM event WHERE at > :since GROUP BY instance, what"
    for name, what, count in database.execute(counted, window):
        events.setdefault(name, {})[what] = count
    # With MAX() alone, sqlite takes the other columns from the row that has it.
    peaks = {
        name: (peak, limit)
        for name, peak, limit in database.execute(
            "SELECT instance, MAX(bytes), limit_bytes FROM peak WHERE at > :since - 86400 GROUP BY instance", window
        )
    }
    found = sorted({*names, *periods, *starts, *events, *peaks})
    return [
        _judge(name, periods.get(name, (0.0, 0.0)), starts.get(name, []), events.get(name, {}), peaks.get(name))
        for name in found
    ]


def _judge(
    name: str,
    period: tuple[float, float],
    starts: list[float],
    events: dict[str, int],
    peak: tuple[int, int | None] | None,
) -> Figures:
    ready, watched = period
    uptime = ready / watched if watched else None
    slow = percentile(starts, 0.95)
    used, limit = peak or (None, None)
    missed = []
    if uptime is not None and uptime < UPTIME_GOAL:
        missed.append(f"uptime below {UPTIME_GOAL:.1%}")
    if slow is not None and slow >= STARTUP_GOAL_SEC:
        missed.append(f"start-up takes {STARTUP_GOAL_SEC:g} s or more")
    if used and limit and used > MEMORY_GOAL * limit:
        missed.append(f"memory above {MEMORY_GOAL:.0%} of the limit")
    nothing = uptime is None and not starts and not events
    return Figures(
        name=name,
        verdict=Verdict.NO_DATA if nothing else Verdict.MISSED if missed else Verdict.GOOD,
        missed=tuple(missed),
        uptime_ratio=uptime,
        watched_seconds=watched,
        starts=len(starts),
        startup_p50_seconds=percentile(starts, 0.5),
        startup_p95_seconds=slow,
        restarts=events.get("restart", 0),
        failures={kind: events[kind] for kind in Kind if kind in events},
        memory_peak_bytes=used,
        memory_limit_bytes=limit,
    )
