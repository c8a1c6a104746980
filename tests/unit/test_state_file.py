"""state.json: content from the main process, and its validation by readers."""

import json
import os
from pathlib import Path

import pytest

from hxp_enterprise_llm.protocol import state
from hxp_enterprise_llm.protocol.failures import Kind, one_line
from hxp_enterprise_llm.protocol.state import NAME, InstanceState, LastReload, Phase, ReloadOutcome, StateFile
from hxp_enterprise_llm.settings.address import Address


def written(tmp_path: Path, content: object) -> InstanceState | None:
    """The state that is read from a file with `content`, which is JSON text or a value to write as JSON."""
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / NAME).write_text(content if isinstance(content, str) else json.dumps(content))
    return state.read(str(tmp_path), "a")


def test_written_state_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = os.umask(0o077)
    try:
        file = StateFile(tmp_path / "a", "f" * 32)
        file.failed("engine-died", "the engine (pid 7) ended")
        file.failed("engine-died", "the engine (pid 8) ended")
        file.failed("engine-hung", "no token")
        file.started(7.93251)
        file.serves(Address(scheme="https", host="::1", port=11500), 4102444800.0)
        refused = LastReload(outcome=ReloadOutcome.REFUSED, at=17e8, reason="PORT changed")
        assert file.enter(Phase.READY, "one\ntwo", refused) == "Ready: one; two"
        file.enter(Phase.RECOVERING, "the engine ended")
    finally:
        os.umask(before)
    found = state.read(str(tmp_path), "a")
    assert found == file.now
    assert (found.phase, found.reason, found.invocation) == (Phase.RECOVERING, "the engine ended", "f" * 32)
    assert found.sentence == "Recovering: the engine ended"
    assert (found.startup_seconds, found.certificate_expires) == (7.933, 4102444800.0)
    assert found.address == Address(scheme="https", host="::1", port=11500)
    assert found.failures == {Kind.ENGINE_DIED: 2, Kind.ENGINE_HUNG: 1}
    assert found.last_failure and (found.last_failure.kind, found.last_failure.reason) == ("engine-hung", "no token")
    assert found.last_reload == refused, "a later phase keeps it"
    assert (tmp_path / "a" / NAME).stat().st_mode & 0o777 == 0o644
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / NAME]
    file.serves(Address(scheme="http", host="::1", port=11500), 0.0)
    again = state.read(str(tmp_path), "a")
    assert again and again.certificate_expires is None


def test_every_phase_has_a_title() -> None:
    assert state.TITLES.keys() == set(Phase)


def test_a_file_of_an_earlier_version_has_no_phase(tmp_path: Path) -> None:
    earlier = {
        "address": {"scheme": "http", "host": "127.0.0.1", "port": 11500},
        "startup_seconds": 7.9,
        "failures": {"engine-died": 2},
        "last_failure": {"kind": "engine-died", "reason": "x" * 999, "at": 17e8},
        "certificate_expires": None,
    }
    found = written(tmp_path, earlier)
    assert found and (found.phase, found.invocation, found.sentence) == (None, "", "")
    assert found.startup_seconds == 7.9 and found.failures == {Kind.ENGINE_DIED: 2}
    assert found.last_failure and len(found.last_failure.reason) == 300
    assert state.read(str(tmp_path), "b") is None


def test_unknown_values_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    later = {
        "phase": "dreaming",
        "failures": {"engine-died": 3, "news": 1},
        "last_failure": {"kind": "news", "reason": "x", "at": 1},
        "last_reload": {"outcome": "postponed", "at": 1},
        "news": {"a": 1},
        "startup_seconds": 1,
    }
    found = written(tmp_path, later)
    assert found == InstanceState(failures={Kind.ENGINE_DIED: 3}, startup_seconds=1)


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
        '{"phase": 7}', '{"phase": ["ready"]}', '{"reason": 7}', '{"invocation": 7}',
        '{"invocation": "' + "f" * 65 + '"}', '{"last_reload": {"outcome": "done", "at": -1}}',
    ],
)  # fmt: skip
def test_invalid_state_content_is_ignored(tmp_path: Path, text: str) -> None:
    assert written(tmp_path, text) is None


def test_text_is_bounded_and_without_control_characters(tmp_path: Path) -> None:
    hostile = "a\nb\x1b[31m\u202e c" + "x" * 9999
    reload = {"outcome": "refused", "at": 1, "reason": hostile}
    found = written(tmp_path, {"phase": "failed", "reason": hostile, "last_reload": reload})
    assert found and found.last_reload
    for text in (found.reason, found.last_reload.reason):
        assert text.startswith("a b [31m c") and len(text) == state.SENTENCE_LENGTH
    assert one_line(hostile).startswith("a b [31m c") and len(one_line(hostile)) == 300


@pytest.mark.parametrize(("host", "believed"), [("127.9.9.9", True), ("::", True), ("192.0.2.1", False)])
def test_reported_address_of_another_host_is_ignored(tmp_path: Path, host: str, believed: bool) -> None:
    found = written(tmp_path, {"address": {"scheme": "http", "host": host, "port": 11500}, "startup_seconds": 1})
    assert found and found.startup_seconds == 1
    assert bool(found.address) == believed


def test_state_that_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
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
        assert state.read(str(tmp_path), name) is None
    assert state.read(str(tmp_path), "elsewhere")


@pytest.mark.parametrize("error", [PermissionError("no"), RecursionError("too deep")])
def test_directory_that_cannot_be_removed_is_not_in_the_way(tmp_path: Path, error: Exception) -> None:
    for name in ("reload", NAME):
        (tmp_path / name / "hostile").mkdir(parents=True)

    def refuse(path: Path) -> None:
        raise error

    state.clear(tmp_path, refuse)
    assert not {"reload", NAME} & {path.name for path in tmp_path.iterdir()}
    state.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_new_run_clears_files_of_an_earlier_run(tmp_path: Path) -> None:
    left, other = tmp_path / "left", tmp_path / "other"
    left.mkdir()
    other.mkdir()
    (other / "kept").touch()
    (left / NAME).write_text("{}")
    (left / "pid").write_text("7")
    (left / "folder").mkdir()
    (left / "folder/file").touch()
    (left / "link").symlink_to(other)
    state.clear(left)
    assert list(left.iterdir()) == [left / NAME], "it is readable until the first state of the new run replaces it"
    assert (other / "kept").exists()
    (left / NAME).unlink()
    (left / NAME).mkdir()
    StateFile(left).enter(Phase.CHECKING)
    state.clear(left)
    StateFile(left).enter(Phase.CHECKING)
    found = state.read(str(tmp_path), "left")
    assert found and found.phase is Phase.CHECKING
