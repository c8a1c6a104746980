"""The figures of `citadel-llm report`: each instance over the last days, from the monitor's store."""

import contextlib
import math
import os
import sqlite3
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hxp_enterprise_llm.monitoring import database
from hxp_enterprise_llm.monitoring.instance import STARTUP_GOAL_SEC
from hxp_enterprise_llm.monitoring.ledger import DAY_SEC
from hxp_enterprise_llm.monitoring.store import FILE, READY_AND_WATCHED
from hxp_enterprise_llm.protocol.failures import Kind
from hxp_enterprise_llm.settings import regular_files
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted

UPTIME_GOAL = 0.999
MEMORY_GOAL = 0.95
"""A peak above this share of the limit is too close to it: at the limit the kernel kills a process."""


class NoFigures(CitadelError):
    """The store does not exist, or cannot be read."""

    code = "no-figures"


class Verdict(StrEnum):
    """Whether an instance met the goals."""

    GOOD = "good"
    MISSED = "missed"
    NO_DATA = "no data"


class Figures(BaseModel):
    """Figures of one instance over the last days. Times in seconds, memory in bytes; None if there is no measurement.

    `watched_seconds` is how long the instance should have run while the monitor ran; `uptime_ratio` is the share of
    that time in which the instance was ready. `restarts` counts automatic restarts by systemd. `missed` describes the
    goals that were missed.
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
    """The percentile of the values by nearest rank; `share` is from 0 to 1. None if there are no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def read(days: float, now: float, names: Sequence[str] = (), file: Path = FILE) -> list[Figures]:
    """The figures of `names` and of all instances that the monitor recorded in the last `days`, sorted by name.

    Raises NotPermitted if this user may not read the file, NoFigures if it does not exist or cannot be used.
    """
    since = now - days * DAY_SEC
    try:
        with contextlib.closing(_open(file)) as connection:
            # One transaction: all queries see the same state.
            connection.execute("BEGIN")
            return _read(connection, since, now, names)
    except (sqlite3.Error, ValidationError, TypeError) as error:
        raise NoFigures(f"{file} cannot be read ({error}); systemctl status citadel-llm-monitor") from None


def _open(file: Path) -> sqlite3.Connection:
    try:
        _check_kind(file)
    except FileNotFoundError:
        raise NoFigures(
            "the monitor has recorded nothing yet; start it with systemctl enable --now citadel-llm-monitor; "
            "it writes within seconds"
        ) from None
    except PermissionError as error:
        raise NotPermitted(f"{file} cannot be read ({error.strerror}); run it as root, with sudo") from None
    except OSError as error:
        raise NoFigures(f"{error.filename}: {error.strerror}; move it away, then restart the monitor") from None
    return database.open_for_reading(file)


def _check_kind(file: Path) -> None:
    """Raise OSError unless SQLite can open the store without waiting: its files belong to the monitor's user."""
    os.close(regular_files.opened(file, follow=False))
    for beside in (f"{file}-wal", f"{file}-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.close(regular_files.opened(beside, follow=False))


def _read(connection: sqlite3.Connection, since: float, now: float, names: Sequence[str]) -> list[Figures]:
    window = {"since": since, "now": now}
    periods = {name: (up, both) for name, up, both in connection.execute(READY_AND_WATCHED, window)}
    starts: dict[str, list[float]] = {}
    for name, seconds in connection.execute(
        "SELECT instance, seconds FROM start WHERE at > :since AND at <= :now", window
    ):
        starts.setdefault(name, []).append(seconds)
    events: dict[str, dict[str, int]] = {}
    counted = "SELECT instance, what, SUM(count) FROM event WHERE at > :since AND at <= :now GROUP BY instance, what"
    for name, what, count in connection.execute(counted, window):
        events.setdefault(name, {})[what] = count
    # With MAX() alone, sqlite takes the other columns from the row that has the maximum.
    peaks = {
        name: (peak, limit)
        for name, peak, limit in connection.execute(
            "SELECT instance, MAX(bytes), limit_bytes FROM peak WHERE at > :since - 86400 AND at <= :now"
            " GROUP BY instance",
            window,
        )
    }
    found = sorted({*names, *periods, *starts, *events, *peaks})
    return [
        _figures(name, periods.get(name, (0.0, 0.0)), starts.get(name, []), events.get(name, {}), peaks.get(name))
        for name in found
    ]


def _figures(
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
