"""The monitor's database: its schema, how it is opened, and how a damaged file is replaced.

The schema only grows, see docs/decisions/0020-the-monitors-store.md.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger("citadel-llm-monitor")

Connect = Callable[[Path], sqlite3.Connection]
Migrations = tuple[tuple[str, ...], ...]

MIGRATIONS: Migrations = (
    (
        "CREATE TABLE IF NOT EXISTS ledger (instance TEXT PRIMARY KEY, content TEXT NOT NULL)",
        """CREATE TABLE IF NOT EXISTS event (instance TEXT NOT NULL, at REAL NOT NULL, what TEXT NOT NULL,
            reason TEXT NOT NULL, count INTEGER NOT NULL)""",
        "CREATE TABLE IF NOT EXISTS start (instance TEXT NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL)",
        """CREATE TABLE IF NOT EXISTS period (instance TEXT NOT NULL, at REAL NOT NULL, until REAL NOT NULL,
            up INTEGER NOT NULL, PRIMARY KEY (instance, at))""",
        """CREATE TABLE IF NOT EXISTS peak (instance TEXT NOT NULL, at REAL NOT NULL, bytes INTEGER NOT NULL,
            limit_bytes INTEGER, PRIMARY KEY (instance, at))""",
        "CREATE INDEX IF NOT EXISTS event_at ON event (at)",
        "CREATE INDEX IF NOT EXISTS start_at ON start (at)",
        "CREATE INDEX IF NOT EXISTS period_until ON period (until)",
    ),
)
"""Statements that migrate each version to the next. `PRAGMA user_version` is the number of steps applied.

A step may add a table with a rowid, an index, or a column that is nullable or has a default: an older monitor must be
able to write to a newer database without knowing what was added.
"""

COLUMNS = {
    "ledger": {"instance", "content"},
    "event": {"instance", "at", "what", "reason", "count"},
    "start": {"instance", "at", "seconds"},
    "period": {"instance", "at", "until", "up"},
    "peak": {"instance", "at", "bytes", "limit_bytes"},
}
"""The tables and columns that this version of the monitor uses."""

KEPT = 3
"""How many damaged files are kept; the oldest are deleted first."""


class Damaged(sqlite3.DatabaseError):
    """The file is not a usable database of the monitor."""


def connect(file: Path) -> sqlite3.Connection:
    """A connection that threads may use one at a time; transactions begin with an explicit BEGIN."""
    return _lenient(sqlite3.connect(file, timeout=2, isolation_level=None, check_same_thread=False))


def open_for_writing(file: Path, migrations: Migrations = MIGRATIONS, connect: Connect = connect) -> sqlite3.Connection:
    """Open the database, create it if it is missing, and migrate an older schema in one transaction.

    A newer schema is used as it is, and its version is not lowered.
    Raises sqlite3.Error; `is_damage` distinguishes a damaged file from a full or missing disk.
    """
    database = connect(file)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise Damaged(str(result))
        _migrate(database, migrations)
        _verify(database)
    except BaseException:
        database.close()
        raise
    return database


def open_for_reading(file: Path) -> sqlite3.Connection:
    """Open the database without changing anything, even for a user who may not write there.

    Raises sqlite3.Error.
    """
    place = file.absolute().as_uri()
    # Without a write-ahead log no process has the file open, and a reader may not be allowed to create the log.
    if Path(f"{file}-wal").exists():
        database = _lenient(sqlite3.connect(f"{place}?mode=ro", uri=True, timeout=5, isolation_level=None))
        try:
            database.execute("SELECT 1 FROM sqlite_master")
            return database
        except sqlite3.OperationalError as error:
            database.close()
            # The index of the log is missing, and this user may not create it: read without what is only in the log.
            if _code(error) != sqlite3.SQLITE_CANTOPEN:
                raise
    return _lenient(sqlite3.connect(f"{place}?immutable=1", uri=True, timeout=5, isolation_level=None))


def is_damage(error: Exception) -> bool:
    """Whether the content of the file is unusable. A full, read-only or missing disk does not count as damage."""
    return isinstance(error, Damaged) or _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit all statements of the block, or none of them."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def set_aside(file: Path, migrations: Migrations = MIGRATIONS, connect: Connect = connect) -> Path:
    """Move a damaged database aside and replace it with a new one that holds what can still be read.

    Returns the new name of the damaged file. Raises OSError or sqlite3.Error if the new file cannot be written; the
    damaged file then stays in place.
    """
    new = file.with_name(f"{file.name}.new")
    _delete(new)
    _salvage(file, new, migrations, connect)
    aside = file.with_name(f"{file.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    os.link(file, aside)
    with contextlib.suppress(FileNotFoundError):
        # The log must be moved before the new file is created: sqlite would apply it to that file.
        Path(f"{file}-wal").replace(f"{aside}-wal")
    Path(f"{file}-shm").unlink(missing_ok=True)
    new.replace(file)
    damaged = [path for path in file.parent.glob(f"{file.name}.damaged-*") if not path.name.endswith(("-wal", "-shm"))]
    for old in sorted(damaged)[:-KEPT]:
        _delete(old)
    return aside


def _lenient(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A connection that reads text that is not UTF-8: sqlite does not report it as damage, but Python refuses it."""
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    return connection


def _code(error: Exception) -> int:
    """The primary result code of sqlite; 0 if the error comes from the Python module."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _migrate(database: sqlite3.Connection, migrations: Migrations) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version >= len(migrations):
        return
    with transaction(database):
        for step in migrations[version:]:
            for statement in step:
                try:
                    database.execute(statement)
                except sqlite3.OperationalError as error:
                    if _code(error) == sqlite3.SQLITE_ERROR:
                        raise Damaged(f"version {version} cannot be migrated: {error}") from None
                    raise
        database.execute(f"PRAGMA user_version = {len(migrations)}")


def _verify(database: sqlite3.Connection) -> None:
    for table, needed in COLUMNS.items():
        missing = needed - _columns(database, table).keys()
        if missing:
            raise Damaged(f"table {table} has no column {', '.join(sorted(missing))}")


def _columns(database: sqlite3.Connection, table: str) -> dict[str, str]:
    """The columns of a table, each with its definition in the syntax of ALTER TABLE ADD COLUMN."""
    found = {}
    for _, name, kind, required, default, _ in database.execute(f"PRAGMA table_info({_quoted(table)})"):
        words = [_quoted(name), kind, f"DEFAULT {default}" if default is not None else ""]
        found[name] = " ".join(filter(None, [*words, "NOT NULL" if required and default is not None else ""]))
    return found


def _salvage(damaged: Path, new: Path, migrations: Migrations, connect: Connect) -> None:
    """Create a database with all readable rows of the damaged one, including tables and columns of other versions."""
    target = connect(new)
    source = _lenient(sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None))
    try:
        _migrate(target, migrations)
        with transaction(target):
            copied = _copy(source, target)
        log.warning("salvaged %d rows of %s", copied, damaged)
    finally:
        source.close()
        target.close()


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> int:
    try:
        (version,) = source.execute("PRAGMA user_version").fetchone()
        (own,) = target.execute("PRAGMA user_version").fetchone()
        schema = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        tables = [(name, sql) for name, sql in source.execute(schema) if str(sql).upper().startswith("CREATE TABLE ")]
    except sqlite3.DatabaseError:
        return 0
    target.execute(f"PRAGMA user_version = {max(version, own)}")
    return sum(_copy_table(source, target, name, sql) for name, sql in tables)


def _copy_table(source: sqlite3.Connection, target: sqlite3.Connection, table: str, sql: str) -> int:
    """Copy the readable rows of a table, which is created if necessary; returns the number of rows."""
    try:
        columns = _columns(source, table)
    except sqlite3.DatabaseError:
        return 0
    try:
        known = _columns(target, table)
        if not known:
            target.execute(sql)
        for name in columns.keys() - known.keys() if known else ():
            target.execute(f"ALTER TABLE {_quoted(table)} ADD COLUMN {columns[name]}")
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_ERROR:
            raise
        log.warning("table %s is not salvaged: %s", table, error)
        return 0
    names = ", ".join(map(_quoted, columns))
    before = target.total_changes
    # Read from both ends, each up to the damage.
    for order in ("ASC", "DESC"):
        rows = _readable(source, f"SELECT rowid, {names} FROM {_quoted(table)} ORDER BY rowid {order}")  # noqa: S608  quoted names
        places = ", ".join("?" * (len(columns) + 1))
        target.executemany(f"INSERT OR IGNORE INTO {_quoted(table)} (rowid, {names}) VALUES ({places})", rows)  # noqa: S608  quoted names
    return target.total_changes - before


def _readable(source: sqlite3.Connection, query: str) -> Iterator[tuple[object, ...]]:
    """The rows before the first unreadable row."""
    try:
        yield from source.execute(query)
    except sqlite3.DatabaseError:
        return


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _delete(file: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
