"""The monitor's history: the counters and events of all instances, in one sqlite file.

Everything is collected in memory and written in batches, so that a slow, full or broken disk delays no answer. Only
the monitor writes; `figures` reads the file for `citadel-llm report`.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hxp_enterprise_llm.monitoring import database
from hxp_enterprise_llm.monitoring.database import MIGRATIONS, Connect, Migrations
from hxp_enterprise_llm.monitoring.ledger import DAY_SEC, Event, Ledger, Start, plausible

log = logging.getLogger("citadel-llm-monitor")

FILE = Path("/var/lib/citadel-llm/monitor/monitor.sqlite")
KEEP_DAYS, KEEP_ROWS = 400, 200_000
"""How long rows are kept: a year and a margin; and the maximum number of rows in a table, for crash loops."""
WAITING = 20_000
"""How many events and starts are kept in memory while the disk cannot be written; the oldest are dropped first."""
UPTIME_DAYS = 30
PRUNE_SEC = 3600.0
TABLES = {"event": "at", "start": "at", "period": "until", "peak": "at"}
"""The tables that are pruned, each with the column of its time."""
READY_AND_WATCHED = """SELECT instance, SUM(up * (MIN(until, :now) - MAX(at, :since))),
    SUM(MIN(until, :now) - MAX(at, :since)) FROM period
    WHERE until > :since AND until > at AND at < :now GROUP BY instance"""
"""For each instance, how long it was ready and how long it was watched (seconds) between `since` and `now`.

Periods in the future come from a wrong clock and do not count.
"""
EVENT = "INSERT INTO event (instance, at, what, reason, count) VALUES (?, ?, ?, ?, ?)"
START = "INSERT INTO start (instance, at, seconds) VALUES (?, ?, ?)"
# An update, not a replacement: columns of a newer version keep their values.
PERIOD = """INSERT INTO period (instance, at, until, up) VALUES (?, ?, ?, ?) ON CONFLICT (instance, at) DO UPDATE
    SET until = excluded.until, up = excluded.up"""
PEAK = """INSERT INTO peak (instance, at, bytes, limit_bytes) VALUES (?, ?, ?, ?) ON CONFLICT (instance, at) DO UPDATE
    SET bytes = excluded.bytes, limit_bytes = excluded.limit_bytes WHERE excluded.bytes >= bytes"""
LEDGER = """INSERT INTO ledger (instance, content) VALUES (?, ?) ON CONFLICT (instance) DO UPDATE
    SET content = excluded.content"""
EMPTY = Ledger()


class Batch(NamedTuple):
    """What is written in one transaction: statements with their values, and the changed ledgers."""

    rows: list[tuple[str, tuple[Any, ...]]]
    periods: dict[tuple[str, float], tuple[float, bool]]
    peaks: dict[tuple[str, float], tuple[int, int | None]]
    ledgers: dict[str, str]


class Store:
    """Ledgers and events of all instances. Only `write` and `close` wait for the disk; no method raises an error.

    `problem` is why the disk cannot be written, or "". `ends` has the end of the last recorded period of each instance
    (seconds since the epoch). `clock` gives the time (seconds since the epoch); with `migrations` and `connect`, a test
    simulates another version or a faulty disk.
    """

    def __init__(
        self,
        file: Path = FILE,
        migrations: Migrations = MIGRATIONS,
        connect: Connect = database.connect,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.problem = ""
        self.ledgers: dict[str, Ledger] = {}
        self.ends: dict[str, float] = {}
        self._file = file
        self._migrations = migrations
        self._connect_to = connect
        self._clock = clock
        self._uptime: dict[str, float] = {}
        self._rows: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=WAITING)
        self._periods: dict[tuple[str, float], tuple[float, bool]] = {}
        self._peaks: dict[tuple[str, float], tuple[int, int | None]] = {}
        self._written: dict[str, str] = {}
        self._loaded = False
        self._stored: dict[str, Ledger] = {}
        self._pruned = 0.0
        self._database: sqlite3.Connection | None = None
        self._writing = threading.Lock()
        self._attempt(self._connect)
        if not self._loaded:
            self._read_at_least()
        self._resume()

    def ledger(self, instance: str) -> Ledger:
        """The ledger of an instance; creates an empty one if there is none."""
        return self.ledgers.setdefault(instance, Ledger())

    def ledger_or_empty(self, instance: str) -> Ledger:
        """The ledger of an instance, for reading only; an empty one if there is none."""
        return self.ledgers.get(instance, EMPTY)

    def uptime(self, instance: str) -> float | None:
        """The share of the time in which an instance should have run, in the last 30 days, in which it was ready.

        None if it never should have run. As of the last write.
        """
        return self._uptime.get(instance)

    def add_events(self, instance: str, *events: Event | Start) -> None:
        """Record new events and starts of an instance; ignore those with implausible times."""
        for event in events:
            if not plausible(event.at):
                continue
            if isinstance(event, Start):
                self._rows.append((START, (instance, event.at, event.seconds)))
            else:
                self._rows.append((EVENT, (instance, event.at, event.what, event.reason, event.count)))

    def add_period(self, instance: str, up: bool, since: float, until: float) -> None:
        """Record that an instance was ready, or should have been, from `since` to `until` (seconds since the epoch)."""
        if not (plausible(until) and 0 <= since < until):
            return
        self.ends[instance] = until
        if len(self._periods) < WAITING:
            self._periods[instance, since] = (until, up)

    def add_memory(self, instance: str, size: int, limit: int | None, now: float) -> None:
        """Record the memory that an instance uses (bytes); the maximum of each day is kept."""
        day = now - now % DAY_SEC
        if len(self._peaks) < WAITING and size >= self._peaks.get((instance, day), (0, None))[0]:
            self._peaks[instance, day] = (size, limit)

    def batch(self) -> Batch:
        """Take the data that has not been written yet."""
        self._resume()
        written = self._written
        ledgers = {name: ledger.dump() for name, ledger in self.ledgers.items()}
        changed = {name: content for name, content in ledgers.items() if content != written.get(name)}
        taken = Batch(list(self._rows), self._periods, self._peaks, changed)
        self._rows.clear()
        self._periods, self._peaks = {}, {}
        return taken

    def put_back(self, batch: Batch) -> None:
        """Return a batch that could not be written, so that it is written later."""
        for row in reversed(batch.rows[-WAITING + len(self._rows) :] if len(self._rows) < WAITING else ()):
            self._rows.appendleft(row)
        self._periods = batch.periods | self._periods
        self._peaks = batch.peaks | self._peaks

    def write(self, batch: Batch, now: float) -> bool:
        """Write a batch in one transaction; returns whether it succeeded. Waits for the disk: call it in a thread."""
        with self._writing:
            self._attempt(lambda: self._write(batch, now))
            return not self.problem

    def close(self) -> None:
        """Wait for a write in progress, write the rest, and close the file."""
        self.write(self.batch(), self._clock())
        self._disconnect()

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            try:
                action()
            except (sqlite3.Error, OSError) as error:
                if not database.is_damage(error):
                    raise
                self._replace(error)
                action()
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            if not self.problem:
                log.error("%s cannot be written (%s); keeping the figures in memory meanwhile", self._file, error)
            self.problem = f"{self._file} cannot be written: {error}"
            return
        if self.problem:
            log.info("%s can be written again", self._file)
        self.problem = ""

    def _replace(self, error: Exception) -> None:
        self._disconnect()
        aside = database.set_aside(self._file, self._migrations, self._connect_to)
        log.error("%s is damaged (%s); moved to %s, continuing with what can be read", self._file, error, aside.name)
        # Ledgers that could not be salvaged are written again.
        self._written = {}

    def _disconnect(self) -> None:
        if self._database:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
        self._database = None

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = database.open_for_writing(self._file, self._migrations, self._connect_to)
        if not self._loaded:
            self._load(self._database)
        return self._database

    def _read_at_least(self) -> None:
        """Read the history of a database that cannot be written at the moment."""
        with contextlib.suppress(sqlite3.Error, OSError):
            reader = database.open_for_reading(self._file)
            try:
                self._load(reader)
            finally:
                reader.close()

    def _load(self, connection: sqlite3.Connection) -> None:
        now = self._clock()
        contents = dict(connection.execute("SELECT instance, content FROM ledger"))
        ends = connection.execute("SELECT instance, MAX(until) FROM period WHERE until <= ? GROUP BY instance", (now,))
        self.ends = dict(ends) | self.ends
        self._look_back(connection, now)
        for instance, content in contents.items():
            try:
                self._stored[instance] = Ledger.load(content)
            except (ValueError, TypeError) as error:
                log.warning("the counters of %s cannot be read (%s); counting from 0", instance, error)
        self._loaded = True

    def _resume(self) -> None:
        """Continue the stored ledgers, and add the counts that began before the file could be read."""
        stored, self._stored = self._stored, {}
        for instance, earlier in stored.items():
            if instance in self.ledgers:
                self.ledgers[instance].resume(earlier)
            else:
                self.ledgers[instance] = earlier
                self._written[instance] = earlier.dump()

    def _resumed(self, instance: str, content: str) -> str:
        """The content of a ledger, including the stored counts if those could not be read before."""
        if instance not in self._stored:
            return content
        ledger = Ledger.load(content)
        ledger.resume(self._stored[instance])
        return ledger.dump()

    def _look_back(self, connection: sqlite3.Connection, now: float) -> None:
        window = {"since": now - UPTIME_DAYS * DAY_SEC, "now": now}
        self._uptime = {name: up / both for name, up, both in connection.execute(READY_AND_WATCHED, window) if both}

    def _write(self, batch: Batch, now: float) -> None:
        connection = self._connect()
        prune = not 0 <= now - self._pruned < PRUNE_SEC
        # Ledgers and the events that they count are in one transaction: after a crash nothing counts twice.
        with database.transaction(connection):
            for statement, values in batch.rows:
                connection.execute(statement, values)
            connection.executemany(PERIOD, [(*key, *value) for key, value in batch.periods.items()])
            connection.executemany(PEAK, [(*key, *value) for key, value in batch.peaks.items()])
            connection.executemany(LEDGER, [(name, self._resumed(name, text)) for name, text in batch.ledgers.items()])
            if prune:
                _prune(connection, now)
        if prune:
            self._pruned = now
        self._written |= batch.ledgers
        self._look_back(connection, now)


def _prune(connection: sqlite3.Connection, now: float) -> None:
    """Delete expired rows, at most one day's worth of them at a time, and rows beyond KEEP_ROWS.

    One day at a time, because a clock that is wrong for an hour must not erase the history.
    """
    for table, column in TABLES.items():
        (oldest,) = connection.execute(f"SELECT MIN({column}) FROM {table}").fetchone()  # noqa: S608  our own names
        if oldest is None:
            continue
        before = min(now - KEEP_DAYS * DAY_SEC, oldest + DAY_SEC)
        connection.execute(f"DELETE FROM {table} WHERE {column} < ?", (before,))  # noqa: S608  our own names
        surplus = f"SELECT rowid FROM {table} ORDER BY {column} DESC LIMIT -1 OFFSET {KEEP_ROWS}"  # noqa: S608  our own names
        connection.execute(f"DELETE FROM {table} WHERE rowid IN ({surplus})")  # noqa: S608  our own names
