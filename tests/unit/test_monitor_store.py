"""The history that the monitor keeps, and its behaviour if it cannot be kept."""

import asyncio
import concurrent.futures
import contextlib
import json
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.monitoring import database
from hxp_enterprise_llm.monitoring.daemon import Writer
from hxp_enterprise_llm.monitoring.database import KEPT, MIGRATIONS, Connect
from hxp_enterprise_llm.monitoring.figures import read as read_figures
from hxp_enterprise_llm.monitoring.ledger import DAY_SEC, Event, Start
from hxp_enterprise_llm.monitoring.store import KEEP_DAYS, Store
from hxp_enterprise_llm.protocol.failures import Kind

from .monitored import KILLED, SECOND


def flush(store: Store, now: float | None = None) -> bool:
    batch = store.batch()
    written = store.write(batch, time.time() if now is None else now)
    if not written:
        store.put_back(batch)
    return written


def rows(file: Path, table: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(file)
    found = database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()  # noqa: S608  our own names
    database.close()
    return found


def test_the_store_survives_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    now = time.time()
    store = Store(file)
    store.add_events(
        "a", *store.ledger("a").take_unit(KILLED | {"NRestarts": 3, "ExecMainExitTimestamp": now * SECOND}, 1, now)
    )
    store.add_period("a", True, now - 100, now - 10)
    store.add_period("a", True, now - 100, now - 1)
    store.add_period("a", False, now - 1, now)
    store.add_memory("a", 50, 100, now)
    store.add_memory("a", 40, 100, now)
    assert flush(store)
    store.close()
    again = Store(file)
    assert again.ledger("a") == store.ledger("a") and again.ledger("a").restarts == 3
    assert again.uptime("a") == pytest.approx(0.99)
    assert again.ends == {"a": now}
    assert len(rows(file, "period")) == 2 and len(rows(file, "event")) == 2
    assert rows(file, "peak")[0][2] == 50


# Other versions

NOW = 1_790_000_000.0
"""When the recorded store was last written (seconds since the epoch)."""
RECORDED = Path(__file__).parent / "data/monitor-version-1.sql"
"""A store that the first version of the monitor wrote."""
NEXT_STEP = ("ALTER TABLE event ADD COLUMN host TEXT", "CREATE TABLE wake (instance TEXT NOT NULL, at REAL NOT NULL)")


def recorded(folder: Path, *statements: str) -> Path:
    """The recorded store as a file, after further statements."""
    file = folder / "m.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(RECORDED.read_text())
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return file


def opened(file: Path, **parameters: Any) -> Store:
    store = Store(file, clock=lambda: NOW, **parameters)
    assert not store.problem
    return store


def version_of(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def no_file_set_aside(folder: Path) -> bool:
    return not list(folder.glob("*.damaged-*")) and not list(folder.glob("*.new"))


def test_a_store_of_the_first_version_is_read_and_written(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    store = opened(file)
    ledger = store.ledger("a")
    assert (ledger.restarts, ledger.failures, ledger.exit_code, ledger.cpu.total) == (1, {"signal": 1}, 137, 12.5)
    assert store.ledger("b").restarts == 2
    assert store.uptime("a") == pytest.approx(0.99)
    assert store.ends == {"a": NOW}
    before = {table: rows(file, table) for table in ("event", "start", "period", "peak")}
    ledger.restarts += 1
    store.close()
    assert opened(file).ledger("a").restarts == 2
    assert {table: rows(file, table) for table in before} == before
    (figures,) = read_figures(1, NOW, [], file)
    assert (figures.restarts, figures.starts, figures.memory_peak_bytes) == (1, 2, 6 * 10**9)


def test_an_older_schema_is_migrated_once(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    events = rows(file, "event")
    for _ in range(2):
        store = opened(file, migrations=(*MIGRATIONS, NEXT_STEP))
        assert store.ledger("a").restarts == 1
        store.close()
        assert version_of(file) == 2
    assert rows(file, "event") == [(*event, None) for event in events]
    assert rows(file, "wake") == []
    assert no_file_set_aside(tmp_path)


def test_a_migration_that_is_interrupted_changes_nothing(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    before = file.read_bytes()

    class Full(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith("CREATE TABLE wake"):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    store = Store(file, (*MIGRATIONS, NEXT_STEP), connecting(Full), lambda: NOW)
    assert "full" in store.problem
    assert store.ledger("a").restarts == 1, "the history is read all the same"
    assert (file.read_bytes(), version_of(file)) == (before, 1)
    assert opened(file).ledger("a").restarts == 1


def test_newer_schema_is_used_and_not_downgraded(tmp_path: Path) -> None:
    file = recorded(
        tmp_path,
        *NEXT_STEP,
        "ALTER TABLE ledger ADD COLUMN note TEXT NOT NULL DEFAULT 'none'",
        "ALTER TABLE period ADD COLUMN note TEXT",
        "UPDATE ledger SET note = 'kept'",
        "UPDATE period SET note = 'kept'",
        "INSERT INTO wake VALUES ('a', 5)",
        "PRAGMA user_version = 99",
    )
    store = opened(file)
    store.ledger("a").restarts = 9
    store.add_events("a", Event(at=NOW, what="restart"), Start(at=NOW, seconds=3))
    store.add_period("a", True, NOW - 490, NOW + 1)
    store.add_memory("a", 7 * 10**9, None, NOW)
    store.close()
    assert opened(file).ledger("a").restarts == 9
    assert version_of(file) == 99
    assert rows(file, "wake") == [("a", 5.0)]
    assert {row[-1] for row in rows(file, "ledger")} == {row[-1] for row in rows(file, "period")} == {"kept"}
    assert [len(rows(file, table)) for table in ("event", "start", "period", "peak")] == [3, 3, 3, 1]
    assert no_file_set_aside(tmp_path)


def test_records_of_unknown_kinds_are_kept_and_ignored(tmp_path: Path) -> None:
    ledger = {
        "restarts": 4,
        "failures": {"signal": 1, "melted": 2},
        "last_failure": {"kind": "melted", "reason": "r", "at": 1},
        "ended": ["melted"],
        "wakes": 17,
    }
    file = recorded(tmp_path, f"INSERT INTO event VALUES ('a', {NOW - 1}, 'melted', 'r', 2)")  # noqa: S608  a number
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE ledger SET content = ? WHERE instance = 'a'", (json.dumps(ledger),))
        connection.commit()
    store = opened(file)
    assert (store.ledger("a").restarts, store.ledger("a").last_failure) == (4, None)
    store.ledger("a").restarts += 1
    store.close()
    stored = json.loads(dict(rows(file, "ledger"))["a"])
    assert stored | ledger | {"restarts": 5} == stored
    assert ("a", NOW - 1, "melted", "r", 2) in rows(file, "event")
    (figures,) = read_figures(1, NOW, [], file)
    assert figures.failures == {"signal": 1}
    # A failure of this version replaces the last failure, whose kind is unknown.
    store = opened(file)
    store.ledger("a").take_unit(KILLED | {"InvocationID": "new", "ExecMainExitTimestamp": NOW * SECOND}, 1, NOW)
    store.close()
    stored = json.loads(dict(rows(file, "ledger"))["a"])
    assert (stored["last_failure"]["kind"], stored["failures"]) == ("signal", {"signal": 2, "melted": 2})


# Damage


def test_text_that_is_not_utf8_costs_only_its_row(tmp_path: Path) -> None:
    file = recorded(
        tmp_path,
        "UPDATE ledger SET content = CAST(x'7bff7d' AS TEXT) WHERE instance = 'a'",
        "UPDATE event SET reason = CAST(x'ff' AS TEXT), what = CAST(x'ff' AS TEXT)",
    )
    store = opened(file)
    assert (store.ledger("a").restarts, store.ledger("b").restarts) == (0, 2)
    assert flush(store) and not store.problem
    assert [figures.name for figures in read_figures(1, NOW, [], file)] == ["a"]
    store.close()
    assert no_file_set_aside(tmp_path)


@pytest.mark.parametrize("damage", ["no database", "missing table", "other table", "torn"])
def test_a_damaged_store_is_moved_aside_and_salvaged(tmp_path: Path, damage: str) -> None:
    file = recorded(tmp_path, "CREATE TABLE wake (instance TEXT, at REAL)", "INSERT INTO wake VALUES ('a', 5)")
    store = opened(file)
    store.add_events("a", *(Event(at=NOW - n, what="restart", reason="x" * 300) for n in range(1, 1001)))
    store.close()
    if damage == "no database":
        file.write_bytes(b"nonsense" * 1000)
    elif damage == "torn":
        content = bytearray(file.read_bytes())
        middle = len(content) // 2 // 4096 * 4096
        content[middle : middle + 4096] = b"\xff" * 4096
        file.write_bytes(content)
    else:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("DROP TABLE start")
            if damage == "other table":
                connection.execute("CREATE TABLE start (duration REAL)")
            connection.commit()
    before = file.read_bytes()
    again = opened(file)
    (aside,) = (path for path in tmp_path.glob("m.sqlite.damaged-*") if not path.name.endswith(("-wal", "-shm")))
    assert aside.read_bytes() == before
    again.ledger("c").restarts = 2
    again.close()
    assert opened(file).ledger("c").restarts == 2
    if damage == "no database":
        assert rows(file, "event") == []
        return
    assert again.ledger("a").restarts == 1 and again.uptime("a") == pytest.approx(0.99)
    events = len(rows(file, "event"))
    assert 900 < events < 1002 if damage == "torn" else events == 1002
    assert rows(file, "wake") == [("a", 5.0)]


def test_write_ahead_log_of_damaged_store_is_kept(tmp_path: Path) -> None:
    """The monitor's last write is only in the write-ahead log."""
    file = recorded(tmp_path)
    live = opened(file)
    live.ledger("a").restarts = 5
    assert live.write(live.batch(), NOW)
    killed = copied(file, tmp_path / "killed")
    live.close()
    content = bytearray(killed.read_bytes())
    content[-4096:] = b"\xff" * 4096
    killed.write_bytes(content)
    assert opened(killed).ledger("a").restarts == 5
    assert not no_file_set_aside(killed.parent)


def test_only_the_latest_damaged_stores_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    for number in range(KEPT + 2):
        file.write_bytes(f"nonsense {number} ".encode() * 100)
        opened(file).close()
    kept = sorted(tmp_path.glob("m.sqlite.damaged-*"))
    assert len(kept) == KEPT
    assert any(path.read_bytes().startswith(f"nonsense {KEPT + 1} ".encode()) for path in kept)


# The disk and the process


def connecting(factory: type[sqlite3.Connection]) -> Connect:
    return lambda file: sqlite3.connect(file, timeout=2, isolation_level=None, check_same_thread=False, factory=factory)


def copied(file: Path, folder: Path) -> Path:
    """Copy the files of a store as a process that is killed at this moment leaves them."""
    folder.mkdir()
    for path in file.parent.glob(f"{file.name}*"):
        shutil.copy(path, folder)
    return folder / file.name


def test_full_disk_delays_writes_without_loss(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    full = False

    def connect(file: Path) -> sqlite3.Connection:
        connection = database.connect(file)
        if full:
            # The file may not grow: sqlite then reports a full disk.
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    Store(file).close()
    full = True
    store = Store(file, connect=connect)
    store.add_events("a", *(Event(at=time.time() - n, what="restart", reason="x" * 300) for n in range(500)))
    store.ledger("a").restarts = 500
    assert not flush(store)
    assert "full" in store.problem
    full = False
    assert flush(store) and not store.problem
    assert len(rows(file, "event")) == 500
    assert "500" in rows(file, "ledger")[0][1]


def test_a_process_killed_during_a_write_leaves_the_last_committed_state(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    copies: list[Path] = []

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                copies.append(copied(file, tmp_path / f"killed-{len(copies)}"))
            return super().execute(sql, *parameters)

    store = opened(file, connect=connecting(Watched))
    for count in (10, 20):
        store.ledger("a").restarts = count
        store.add_events("a", *(Event(at=NOW - 1, what="restart", reason="x" * 300) for _ in range(1000)))
        assert store.write(store.batch(), NOW)
    store.close()
    for killed, restarts, events in zip(copies, (1, 10, 20), (2, 1002, 2002), strict=True):
        assert opened(killed).ledger("a").restarts == restarts
        assert len(rows(killed, "event")) == events
        assert no_file_set_aside(killed.parent)


def test_stop_waits_for_a_running_write_and_writes_the_rest_once(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and not begun.is_set():
                begun.set()
                assert go_on.wait(60)
            return super().execute(sql, *parameters)

    store = opened(file, connect=connecting(Slow))
    store.add_events("a", Event(at=NOW - 2, what="restart", reason="before the stop"))

    async def stop() -> None:
        writer = Writer(store, lambda: None, record_sec=0)
        task = asyncio.create_task(writer.run())
        assert await asyncio.to_thread(begun.wait, 60)
        store.add_events("a", Event(at=NOW - 1, what="restart", reason="after it"))
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        closing = asyncio.create_task(writer.close())
        await asyncio.sleep(0)
        assert not closing.done()
        go_on.set()
        await closing

    asyncio.run(stop())
    assert [row[3] for row in rows(file, "event")][-2:] == ["before the stop", "after it"]
    assert len(rows(file, "event")) == 4
    assert no_file_set_aside(tmp_path)


def test_a_write_that_fails_during_a_stop_is_repeated(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and not begun.is_set():
                begun.set()
                assert go_on.wait(60)
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *parameters)

    store = opened(file, connect=connecting(Failing))
    store.add_events("a", Event(at=NOW - 2, what="restart", reason="once"))

    async def stop() -> None:
        writer = Writer(store, lambda: None, record_sec=0)
        task = asyncio.create_task(writer.run())
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        go_on.set()
        await writer.close()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(stop())
    assert [row[3] for row in rows(file, "event")].count("once") == 1


def test_two_threads_write_one_after_the_other(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    store = opened(file)
    batches = []
    for number in range(20):
        store.add_events("a", Event(at=NOW - number, what="restart", reason=str(number)))
        batches.append(store.batch())
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda batch: store.write(batch, NOW), batches))
    store.close()
    assert len(rows(file, "event")) == 22
    assert no_file_set_aside(tmp_path)


def test_the_history_is_read_while_the_disk_cannot_be_written(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    broken = True

    def connect(file: Path) -> sqlite3.Connection:
        if broken:
            raise sqlite3.OperationalError("unable to open database file")
        return database.connect(file)

    store = Store(file, connect=connect, clock=lambda: NOW)
    assert store.problem and store.ledger("a").restarts == 1 and store.uptime("a") == pytest.approx(0.99)
    store.ledger("a").restarts += 1
    broken = False
    assert flush(store, NOW)
    assert opened(file).ledger("a").restarts == 2


def test_counters_from_before_the_history_was_read_are_added(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    file = recorded(tmp_path / "away")
    store = Store(tmp_path / "there/m.sqlite", clock=lambda: NOW)
    assert store.problem
    same_start = {"InvocationID": "b", "NRestarts": 1}
    store.ledger("a").take_unit(KILLED | same_start | {"ExecMainExitTimestamp": (NOW + 5) * SECOND}, 1, NOW + 5)
    store.ledger("c").restarts = 3
    (tmp_path / "away").rename(tmp_path / "there")
    assert flush(store, NOW + 10)
    file = tmp_path / "there/m.sqlite"
    for found in (store, opened(file)):
        found.batch()
        # systemd's one restart had been counted, the second failure had not.
        assert (found.ledger("a").restarts, found.ledger("a").failures) == (1, {"signal": 2})
        assert (found.ledger("b").restarts, found.ledger("c").restarts) == (2, 3)
        assert found.ledger("a").startup_seconds == 8


def test_unopenable_store_is_retried(tmp_path: Path) -> None:
    store = Store(tmp_path / "missing/m.sqlite")
    assert "cannot be written" in store.problem
    store.ledger("a").restarts = 7
    assert not flush(store)
    (tmp_path / "missing").mkdir()
    assert flush(store) and not store.problem
    assert Store(tmp_path / "missing/m.sqlite").ledger("a").restarts == 7


# Clocks


def test_implausible_times_are_ignored(tmp_path: Path) -> None:
    file = recorded(tmp_path)
    future = NOW + 9e8
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("INSERT INTO period VALUES ('a', ?, ?, 0)", (future, future + 100))
        connection.execute("INSERT INTO event VALUES ('a', ?, 'watchdog', '', 1)", (future,))
        connection.execute("INSERT INTO start VALUES ('a', ?, 99)", (future,))
        connection.commit()
    store = opened(file)
    assert store.ends == {"a": NOW}
    assert store.uptime("a") == pytest.approx(0.99)
    (figures,) = read_figures(1, NOW, [], file)
    assert figures.uptime_ratio == pytest.approx(0.99)
    assert (figures.failures, figures.starts) == ({Kind.SIGNAL: 1}, 2)
    for at in (float("nan"), float("inf"), -1.0, 0.0, 1e12):
        store.add_events("a", Event(at=at, what="restart"), Start(at=at, seconds=1))
        store.add_period("a", True, NOW - 5, at)
    store.add_period("a", True, float("nan"), NOW)
    assert flush(store, NOW)
    assert [len(rows(file, table)) for table in ("event", "start", "period")] == [3, 3, 4]


def test_a_clock_that_is_wrong_for_an_hour_does_not_erase_the_history(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file, clock=lambda: NOW)
    for day in range(300):
        store.add_events("a", Event(at=NOW - day * DAY_SEC, what="restart"))
    assert flush(store, NOW)
    for minute in range(60):
        assert flush(store, NOW + 80 * 365 * DAY_SEC + minute * 60)
    assert flush(store, NOW)
    assert len(rows(file, "event")) >= 298


def test_old_records_are_deleted(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file)
    now = 2e9
    for age in (KEEP_DAYS + 1, KEEP_DAYS - 1):
        at = now - age * DAY_SEC
        store.add_events("a", Event(at=at, what="restart"), Start(at=at, seconds=1))
        store.add_period("a", True, at - 10, at)
        store.add_memory("a", 5, None, at)
    assert flush(store, now)
    assert [len(rows(file, table)) for table in ("event", "start", "period", "peak")] == [1, 1, 1, 1]
