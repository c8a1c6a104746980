"""The monitor's memory on disk: ledgers, and what happened when, in one sqlite file.

Everything is kept in memory first and written in batches, so that a slow, full or broken disk delays no
answer. Only the monitor writes; `figures` reads for `citadel-llm report`.
"""

import contextlib
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from hxp_enterprise_llm.monitoring.ledger import DAY_SEC, Event, Ledger, Start

log = logging.getLogger("citadel-llm-monitor")

FILE = Path("/var/lib/citadel-llm/monitor/monitor.sqlite")
KEEP_DAYS, KEEP_ROWS = 400, 200_000
"""What is kept of each table: a year and a margin, and in a crash loop never more rows than this."""
WAITING = 20_000
"""How many things that happened wait for a disk that takes none; the oldest go first."""
UPTIME_DAYS = 30
VERSION = 1
SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE ledger (instance TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE event (instance TEXT NOT NULL, at REAL NOT NULL, what TEXT NOT NULL, reason TEXT NOT NULL,
    count INTEGER NOT NULL);
CREATE TABLE start (instance TEXT NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL);
CREATE TABLE period (instance TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL, up INTEGER NOT NULL,
    PRIMARY KEY (instance, at));
CREATE TABLE peak (instance TEXT NOT NULL, at REAL NOT NULL, bytes INTEGER NOT NULL, limit_bytes INTEGER,
    PRIMARY KEY (instance, at));
CREATE INDEX event_at ON event (at);
CREATE INDEX start_at ON start (at);
CREATE INDEX period_until ON period (until);
"""
TABLES = {"event": "at", "start": "at", "period": "until", "peak": "at"}
UPTIME = """SELECT instance, SUM(CASE WHEN up THEN until - MAX(at, :since) ELSE 0 END) / SUM(until - MAX(at, :since))
    FROM period WHERE until > :since AND until > at GROUP BY instance"""


PERIOD = "INSERT OR REPLACE INTO period VALUES (?, ?, ?, ?)"
PEAK = """INSERT INTO peak VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE
    SET bytes = excluded.bytes, limit_bytes = excluded.limit_bytes WHERE excluded.bytes >= bytes"""


NOTHING = Ledger()


class NotOurs(sqlite3.DatabaseError):
    """The file is damaged, or of another version."""


class Batch(NamedTuple):
    """What is to be written at once: statements with their values, and the ledgers that have changed."""

    rows: list[tuple[str, tuple[Any, ...]]]
    periods: dict[tuple[str, float], tuple[float, bool]]
    peaks: dict[tuple[str, float], tuple[int, int | None]]
    ledgers: dict[str, str]


class Store:
    """Ledgers of all instances and what happened to them. Methods but `write` only touch memory, and never fail.

    `trouble` says in words why the disk takes nothing, "" while it does. `ends` has when each was last seen running.
    """

    def __init__(self, file: Path = FILE) -> None:
        self.trouble = ""
        self.ledgers: dict[str, Ledger] = {}
        self.ends: dict[str, float] = {}
        self._file = file
        self._uptime: dict[str, float] = {}
        self._rows: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=WAITING)
        self._periods: dict[tuple[str, float], tuple[float, bool]] = {}
        self._peaks: dict[tuple[str, float], tuple[int, int | None]] = {}
        self._written: dict[str, str] = {}
        self._pruned = 0.0
        self._database: sqlite3.Connection | None = None
        self._attempt(self._load)

    def ledger(self, instance: str) -> Ledger:
        """The ledger of an instance, a new one if there is none."""
        return self.ledgers.setdefault(instance, Ledger())

    def told(self, instance: str) -> Ledger:
        """The ledger of an instance to read from; one for all of which there is nothing to tell."""
        return self.ledgers.get(instance, NOTHING)

    def uptime(self, instance: str) -> float | None:
        """The share of the last 30 days that an instance was ready, of the time that it should have run; None for one
        that never should. As of the last write.
        """
        return self._uptime.get(instance)

    def happened(self, instance: str, *what: Event | Start) -> None:
        """Remember what a ledger told of new."""
        for one in what:
            if isinstance(one, Start):
                self._rows.append(("INSERT INTO start VALUES (?, ?, ?)", (instance, one.at, one.seconds)))
            else:
                values = (instance, one.at, one.what, one.reason, one.count)
                self._rows.append(("INSERT INTO event VALUES (?, ?, ?, ?, ?)", values))

    def was(self, instance: str, up: bool, since: float, until: float) -> None:
        """Remember that an instance was up, or down and should not have been, from `since` until now."""
        self.ends[instance] = until
        if len(self._periods) < WAITING:
            self._periods[instance, since] = (until, up)

    def used(self, instance: str, size: int, limit: int | None, now: float) -> None:
        """Remember how much memory an instance has used (bytes); the most of each day is kept."""
        day = now - now % DAY_SEC
        if len(self._peaks) < WAITING and size >= self._peaks.get((instance, day), (0, None))[0]:
            self._peaks[instance, day] = (size, limit)

    def batch(self) -> Batch:
        """Take out what waits, all of one moment."""
        written = self._written
        ledgers = {name: ledger.model_dump_json() for name, ledger in self.ledgers.items()}
        changed = {name: content for name, content in ledgers.items() if content != written.get(name)}
        taken = Batch(list(self._rows), self._periods, self._peaks, changed)
        self._rows.clear()
        self._periods, self._peaks = {}, {}
        return taken

    def put_back(self, batch: Batch) -> None:
        """Let a batch that could not be written wait again."""
        for row in reversed(batch.rows[-WAITING + len(self._rows) :] if len(self._rows) < WAITING else ()):
            self._rows.appendleft(row)
        self._periods = batch.periods | self._periods
        self._peaks = batch.peaks | self._peaks

    def write(self, batch: Batch, now: float) -> bool:
        """Write a batch, and say whether that worked. May block on the disk: call it in a thread, one at a time."""
        self._attempt(lambda: self._write(batch, now))
        return not self.trouble

    def close(self) -> None:
        """Write what waits and close the file."""
        self.write(self.batch(), time.time())
        self._disconnect()

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (sqlite3.Error, OSError, ValidationError) as error:
            if not _is_corrupt(error):
                return self._in_trouble(error)
            self._set_aside(error)
            try:
                action()
            except (sqlite3.Error, OSError) as again:
                return self._in_trouble(again)
        self._out_of_trouble()

    def _in_trouble(self, error: Exception) -> None:
        self._disconnect()
        if not self.trouble:
            log.error("%s cannot be written (%s): the figures are kept in memory until it can", self._file, error)
        self.trouble = f"{self._file} cannot be written: {error}"

    def _out_of_trouble(self) -> None:
        if self.trouble:
            log.info("%s is written again", self._file)
        self.trouble = ""

    def _set_aside(self, error: Exception) -> None:
        """Rename a file that is no database of ours; one such is kept."""
        self._disconnect()
        aside = self._file.with_name(f"{self._file.name}.corrupt")
        log.error("%s is corrupt (%s): set aside as %s, a new one is begun", self._file, error, aside.name)
        with contextlib.suppress(OSError):
            self._file.replace(aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                self._file.with_name(self._file.name + suffix).unlink()
        self._written.clear()

    def _disconnect(self) -> None:
        if self._database:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
        self._database = None

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            # isolation_level None: transactions are begun where they are meant. Threads take turns by the lock.
            database = sqlite3.connect(self._file, timeout=2, isolation_level=None, check_same_thread=False)
            self._database = database
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise NotOurs("quick_check finds damage")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                database.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            elif version != VERSION:
                raise NotOurs(f"its version is {version}, not {VERSION}")
        return self._database

    def _load(self) -> None:
        database = self._connect()
        for instance, content in database.execute("SELECT instance, content FROM ledger"):
            self.ledgers[instance] = Ledger.model_validate_json(content)
            self._written[instance] = content
        self.ends = dict(database.execute("SELECT instance, MAX(until) FROM period GROUP BY instance"))
        self._look_back(database, time.time())

    def _look_back(self, database: sqlite3.Connection, now: float) -> None:
        self._uptime = dict(database.execute(UPTIME, {"since": now - UPTIME_DAYS * DAY_SEC}))

    def _write(self, batch: Batch, now: float) -> None:
        database = self._connect()
        database.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in batch.rows:
                database.execute(statement, values)
            database.executemany(PERIOD, [(*key, *value) for key, value in batch.periods.items()])
            database.executemany(PEAK, [(*key, *value) for key, value in batch.peaks.items()])
            # In one transaction with what they tell of: after a crash nothing is counted twice.
            database.executemany("INSERT OR REPLACE INTO ledger VALUES (?, ?)", batch.ledgers.items())
            if now - self._pruned > DAY_SEC / 24:
                self._prune(database, now)
                self._pruned = now
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise
        self._written |= batch.ledgers
        self._look_back(database, now)

    @staticmethod
    def _prune(database: sqlite3.Connection, now: float) -> None:
        for table, column in TABLES.items():
            database.execute(f"DELETE FROM {table} WHERE {column} < ?", (now - KEEP_DAYS * DAY_SEC,))  # noqa: S608  our own names
            surplus = f"SELECT rowid FROM {table} ORDER BY {column} DESC LIMIT -1 OFFSET {KEEP_ROWS}"  # noqa: S608  our own names
            database.execute(f"DELETE FROM {table} WHERE rowid IN ({surplus})")  # noqa: S608  our own names


def _is_corrupt(error: Exception) -> bool:
    """Whether the file is no database of ours, rather than a disk that is full or away."""
    if isinstance(error, ValidationError | NotOurs):
        return True
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # SQLITE_ERROR is what a missing table gives.
    return primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
