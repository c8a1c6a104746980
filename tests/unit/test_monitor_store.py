"""What the monitor keeps, and what it does where it cannot."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.monitoring.ledger import Event, Start
from hxp_enterprise_llm.monitoring.store import DAY_SEC, KEEP_DAYS, Store

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
    store.happened(
        "a", *store.ledger("a").take_unit(KILLED | {"NRestarts": 3, "ExecMainExitTimestamp": now * SECOND}, 1, now)
    )
    store.was("a", True, now - 100, now - 10)
    store.was("a", True, now - 100, now - 1)
    store.was("a", False, now - 1, now)
    store.used("a", 50, 100, now)
    store.used("a", 40, 100, now)
    assert flush(store)
    store.close()
    again = Store(file)
    assert again.ledger("a") == store.ledger("a") and again.ledger("a").restarts == 3
    assert again.uptime("a") == pytest.approx(0.99)
    assert again.ends == {"a": now}
    assert len(rows(file, "period")) == 2 and len(rows(file, "event")) == 2
    assert rows(file, "peak")[0][2] == 50


@pytest.mark.parametrize("damage", ["no database", "other schema", "other version", "bad ledger", "torn"])
def test_a_corrupt_store_is_set_aside_and_a_new_one_begun(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file)
    store.ledger("a").restarts = 1
    store.close()
    if damage == "no database":
        file.write_bytes(b"nonsense" * 1000)
    elif damage == "torn":
        content = bytearray(file.read_bytes())
        content[4096:12288] = b"\xff" * 8192
        file.write_bytes(content)
    else:
        database = sqlite3.connect(file)
        statement = {
            "other schema": "DROP TABLE ledger",
            "other version": "PRAGMA user_version = 99",
            "bad ledger": 'UPDATE ledger SET content = \'{"restarts": "x"}\'',
        }[damage]
        database.execute(statement)
        database.commit()
        database.close()
    again = Store(file)
    assert not again.trouble
    assert (tmp_path / "m.sqlite.corrupt").exists()
    again.ledger("b").restarts = 2
    assert flush(again)
    assert [row[0] for row in rows(file, "ledger")][-1] == "b"


def test_a_full_disk_delays_what_is_written_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file)
    # The file may grow no further: what sqlite then says is what it says of a full disk.
    assert store._database
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    store.happened("a", *(Event(at=time.time() - n, what="restart", reason="x" * 300) for n in range(500)))
    store.ledger("a").restarts = 500
    disconnect, store._disconnect = store._disconnect, lambda: None  # type: ignore[method-assign]
    assert not flush(store)
    assert "full" in store.trouble
    store._disconnect = disconnect  # type: ignore[method-assign]
    store._disconnect()
    assert flush(store) and not store.trouble
    assert len(rows(file, "event")) == 500
    assert "500" in rows(file, "ledger")[0][1]


def test_a_store_that_cannot_be_opened_is_no_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "missing/m.sqlite")
    assert "cannot be written" in store.trouble
    store.ledger("a").restarts = 7
    assert not flush(store)
    (tmp_path / "missing").mkdir()
    assert flush(store) and not store.trouble
    assert Store(tmp_path / "missing/m.sqlite").ledger("a").restarts == 7


def test_what_is_old_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    store = Store(file)
    now = 2e9
    for age in (KEEP_DAYS + 1, KEEP_DAYS - 1):
        at = now - age * DAY_SEC
        store.happened("a", Event(at=at, what="restart"), Start(at=at, seconds=1))
        store.was("a", True, at - 10, at)
        store.used("a", 5, None, at)
    assert flush(store, now)
    assert [len(rows(file, table)) for table in ("event", "start", "period", "peak")] == [1, 1, 1, 1]
