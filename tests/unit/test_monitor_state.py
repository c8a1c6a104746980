"""What the monitor believes of the words of a main process."""

import json
import os
from pathlib import Path

import pytest

from hxp_enterprise_llm.monitoring import state_file
from hxp_enterprise_llm.monitoring.failures import Kind, words


def test_what_the_main_process_says_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    said = {
        "startup_seconds": 7.9,
        "failures": {"engine-died": 2},
        "last_failure": {"kind": "engine-died", "reason": "x" * 999, "at": 17e8},
    }
    (tmp_path / "a/state.json").write_text(json.dumps(said))
    state = state_file.read(str(tmp_path), "a")
    assert state and state.startup_seconds == 7.9 and state.failures == {Kind.ENGINE_DIED: 2}
    assert state.last and len(state.last.reason) == 300
    assert state_file.read(str(tmp_path), "b") is None
    said |= {"failures": {"engine-died": 3, "news": 1}, "last_failure": {"kind": "news", "reason": "x", "at": 1}}
    (tmp_path / "a/state.json").write_text(json.dumps(said))
    state = state_file.read(str(tmp_path), "a")
    assert state and state.failures == {Kind.ENGINE_DIED: 3} and state.last is None


@pytest.mark.parametrize(
    "text",
    [
        '{"address": {"scheme": "http", "host": "localhost", "port": 11500}}',
        '{"address": {"scheme": "file", "host": "127.0.0.1", "port": 11500}}',
        '{"address": {"scheme": "http", "host": "127.0.0.1", "port": 22}}',
        '{"address": {"scheme": "http", "host": "127.0.0.1", "port": "11500"}}',
        "", "{", "[]", "null", '{"failures": {"engine-died": -1}}', '{"failures": {"engine-died": 1e99}}',
        '{"failures": {"engine-died": true}}', '{"startup_seconds": NaN}',
        '{"certificate_expires": 1e12}', '{"certificate_expires": -1}', '{"certificate_expires": NaN}',
        '{"startup_seconds": 1e308}', '{"startup_seconds": -1}', '{"failures": {"engine-died": ' + "9" * 5000 + "}}",
        '{"last_failure": {"kind": "engine-died", "reason": "x", "at": Infinity}}', "[" * 60000, " " * 65537 + "{}",
        '{"last_failure": {"kind": "engine-died", "reason": ["x"], "at": 1}}',
    ],
)  # fmt: skip
def test_hostile_words_of_the_main_process_are_not_believed(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/state.json").write_text(text)
    assert state_file.read(str(tmp_path), "a") is None


@pytest.mark.parametrize(("host", "believed"), [("127.9.9.9", True), ("::", True), ("192.0.2.1", False)])
def test_an_address_of_another_host_is_not_asked(tmp_path: Path, host: str, believed: bool) -> None:
    (tmp_path / "a").mkdir()
    told = {"address": {"scheme": "http", "host": host, "port": 11500}, "startup_seconds": 1}
    (tmp_path / "a/state.json").write_text(json.dumps(told))
    state = state_file.read(str(tmp_path), "a")
    assert state and state.startup_seconds == 1
    assert bool(state.address) == believed


def test_hostile_files_in_the_place_of_the_state_are_not_opened(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text('{"startup_seconds": 1}')
    for name in ("link", "pipe", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "link/state.json").symlink_to(good)
    os.mkfifo(tmp_path / "pipe/state.json")
    (tmp_path / "folder/state.json").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/state.json").write_text('{"startup_seconds": 1}')
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("link", "pipe", "folder", "linked"):
        assert state_file.read(str(tmp_path), name) is None
    assert state_file.read(str(tmp_path), "elsewhere")


def test_other_peoples_words_are_one_short_line() -> None:
    assert words("a\nb\x1b[31m\u202e c" + "x" * 9999).startswith("a b [31m c")
    assert len(words("x" * 9999)) == 300
