"""The figures of `citadel-llm report`, and its messages without figures."""

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from hxp_enterprise_llm.cli.commands import cli
from hxp_enterprise_llm.monitoring import figures
from hxp_enterprise_llm.monitoring.figures import NoFigures, Verdict, percentile
from hxp_enterprise_llm.monitoring.ledger import DAY_SEC, Event, Start
from hxp_enterprise_llm.monitoring.store import Store
from hxp_enterprise_llm.protocol.failures import Kind
from hxp_enterprise_llm.settings.errors import NotPermitted

NOW = 1.8e9


def filled(file: Path) -> Store:
    """A store in which `good` meets the goals, `bad` misses them, and both have records older than a day."""
    store = Store(file)
    store.add_period("good", True, NOW - 10 * DAY_SEC, NOW)
    store.add_events("good", *(Start(at=NOW - 60, seconds=seconds) for seconds in (5, 6, 7)), Start(at=1, seconds=99))
    store.add_memory("good", 50, 100, NOW)
    store.add_period("bad", True, NOW - 3 * DAY_SEC, NOW - 1000)
    store.add_period("bad", False, NOW - 1000, NOW)
    store.add_events("bad", Start(at=NOW - 60, seconds=31), Event(at=NOW - 60, what="restart", count=2))
    store.add_events("bad", Event(at=NOW - 60, what="engine-died", reason="r"), Event(at=NOW - 60, what="engine-died"))
    store.add_events("bad", Event(at=NOW - 2 * DAY_SEC, what="watchdog", reason="r"))
    store.add_memory("bad", 97, 100, NOW - 60)
    store.add_memory("bad", 99, 200, NOW - 5 * DAY_SEC)
    batch = store.batch()
    assert store.write(batch, NOW)
    return store


def test_figures_give_uptime_starts_failures_and_verdict(tmp_path: Path) -> None:
    store = filled(tmp_path / "m.sqlite")
    bad, good, idle = figures.read(1, NOW, ["idle"], tmp_path / "m.sqlite")
    assert (good.name, good.verdict, good.missed, good.uptime_ratio) == ("good", Verdict.GOOD, (), 1)
    assert (good.starts, good.startup_p50_seconds, good.startup_p95_seconds) == (3, 6, 7)
    assert good.watched_seconds == DAY_SEC
    assert bad.uptime_ratio == pytest.approx(1 - 1000 / DAY_SEC)
    assert (bad.restarts, bad.failures) == (2, {Kind.ENGINE_DIED: 2})
    assert (bad.memory_peak_bytes, bad.memory_limit_bytes) == (97, 100)
    assert bad.verdict is Verdict.MISSED
    assert bad.missed == ("uptime below 99.9%", "start-up takes 30 s or more", "memory above 95% of the limit")
    assert idle.verdict is Verdict.NO_DATA
    (bad, _) = figures.read(7, NOW, [], tmp_path / "m.sqlite")
    assert (bad.failures, bad.memory_peak_bytes) == ({Kind.ENGINE_DIED: 2, Kind.WATCHDOG: 1}, 99)
    store.close()


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_store_with_a_fifo_is_not_opened(tmp_path: Path, ending: str) -> None:
    """A compromised monitor owns the directory, and root runs the report."""
    filled(tmp_path / "m.sqlite").close()
    fifo = tmp_path / f"m.sqlite{ending}"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    with pytest.raises(NoFigures, match=f"m.sqlite{ending}: is not a regular file"):
        figures.read(1, NOW, [], tmp_path / "m.sqlite")


def test_reading_store_of_stopped_monitor_leaves_no_files(tmp_path: Path) -> None:
    filled(tmp_path / "m.sqlite").close()
    assert [one.name for one in figures.read(1, NOW, [], tmp_path / "m.sqlite")] == ["bad", "good"]
    assert list(tmp_path.iterdir()) == [tmp_path / "m.sqlite"]


def test_percentile_uses_nearest_rank() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([3, 1, 2, 4], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([7], 0.95) == 7


def test_missing_data_and_missing_permission_give_different_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.sqlite"
    with pytest.raises(NoFigures, match="enable --now citadel-llm-monitor"):
        figures.read(1, NOW, [], file)
    for content in (b"nonsense" * 200, b""):
        file.write_bytes(content)
        with pytest.raises(NoFigures, match="cannot be read"):
            figures.read(1, NOW, [], file)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(NotPermitted, match="sudo"):
        figures.read(1, NOW, [], file)


def test_a_hostile_store_is_refused(tmp_path: Path) -> None:
    """The monitor's user writes the store, and root may read it."""
    filled(tmp_path / "m.sqlite").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "m.sqlite")) as connection:
        connection.execute("UPDATE start SET seconds = 'soon'")
        connection.commit()
    with pytest.raises(NoFigures):
        figures.read(1, NOW, [], tmp_path / "m.sqlite")


def test_report_command_prints_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "m.sqlite")
    found = figures.read(1, NOW, ["idle"], tmp_path / "m.sqlite")
    monkeypatch.setattr(figures, "read", lambda *_: found)
    printed = CliRunner().invoke(cli, ["report", "--days", "1"]).output
    bad, good, idle = printed.splitlines()[1:4]
    assert bad.split()[1:5] == ["98.842", "31.0", "s", "31.0"]
    assert "2 engine-died" in bad and "missed: uptime below 99.9%" in bad
    assert good.split()[1] == "100.000" and good.endswith("good")
    assert idle.endswith("no data")
    said = json.loads(CliRunner().invoke(cli, ["report", "--days", "1", "--json"]).output)
    assert said["uptime_goal"] == 0.999 and said["startup_goal_seconds"] == 30
    assert said["instances"][0]["failures"] == {"engine-died": 2}
    assert CliRunner().invoke(cli, ["report", "--days", "0"]).exit_code == 2
    store.close()


def test_uptime_is_truncated_not_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "m.sqlite")
    store.add_period("a", True, 0, 999_999.9)
    store.add_period("a", False, 999_999.9, 1_000_000)
    assert store.write(store.batch(), 1_000_000)
    found = figures.read(400, 1_000_000, [], tmp_path / "m.sqlite")
    monkeypatch.setattr(figures, "read", lambda *_: found)
    printed = CliRunner().invoke(cli, ["report", "--days", "400"]).output
    assert printed.splitlines()[1].split()[1] == "99.999"
    store.close()


def test_report_says_that_no_instance_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "m.sqlite")
    found = figures.read(30, time.time(), ["idle"], tmp_path / "m.sqlite")
    monkeypatch.setattr(figures, "read", lambda *_: found)
    assert "has no record of a running instance in the last 30 days" in CliRunner().invoke(cli, ["report"]).output
    store.close()
