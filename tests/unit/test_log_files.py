"""The log file of an instance: the format of a line, entries after a crash, and where the next start resumes."""

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hxp_enterprise_llm.checks import log_files
from hxp_enterprise_llm.log_files.entry import Entry, parse
from hxp_enterprise_llm.log_files.follower import LogFile, follow, journal_command

from .conftest import Root
from .generated import GOOD, drop_in, made


def entry(number: int, message: object = None, **fields: object) -> bytes:
    known = {
        "__CURSOR": f"s=1;i={number}",
        "__REALTIME_TIMESTAMP": str(1_700_000_000_000_000 + number),
        "MESSAGE": f"line {number}" if message is None else message,
        "SYSLOG_IDENTIFIER": "citadel-llm-m",
        "_PID": "7",
        "_HOSTNAME": "there",
    }
    return json.dumps({**known, **fields}).encode() + b"\n"


@pytest.fixture
def file(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "m.log", tmp_path / "m.cursor")


def test_a_line_has_time_host_sender_and_message() -> None:
    found = parse(entry(1, _SOURCE_REALTIME_TIMESTAMP="1600000000000000"))
    time, rest = found.text.split(" ", 1)
    assert found.cursor == "s=1;i=1"
    assert rest == "there citadel-llm-m[7]: line 1\n"
    assert parse(entry(1)).text.split(" ")[0] > time, "the sender's own time comes first"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("two\nlines\n", "two\n    lines"),
        ("red \x1b[31m\r", r"red \x1b[31m\x0d"),
        ([104, 105, 255], r"hi\xff"),
        (["one", "other"], "one\n    other"),
        (None, "line 1"),
        ("\u2028", r"\u2028"),
    ],
)
def test_message_cannot_forge_an_entry_or_control_a_terminal(message: object, text: str) -> None:
    assert parse(entry(1, message)).text.endswith(f"]: {text}\n")


@pytest.mark.parametrize("field", ["SYSLOG_IDENTIFIER", "SYSLOG_PID", "_COMM"])
@pytest.mark.parametrize("value", ["x\nforged", ["x", "forged"]])
def test_sender_cannot_forge_an_entry(field: str, value: object) -> None:
    text = parse(entry(1, **{"SYSLOG_IDENTIFIER": "", field: value})).text
    assert text.count("\n") == 1 and "forged" in text


@pytest.mark.parametrize("line", [b"", b"no json", b"[]", b"{}", b'{"__CURSOR": "a"}'])
def test_invalid_journal_line_raises_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse(line)


def test_start_resumes_after_the_last_entry(file: LogFile, tmp_path: Path) -> None:
    assert journal_command("m", file.position(1010.5))[-1] == "--since=@1000"
    assert file.position(2000) == "@1000", "a file that could not be written yet misses no line"
    file.append([Entry("s=1;i=1", "a\n"), Entry("s=1;i=2", "b\n")])
    assert journal_command("m", file.position(2000))[-2:] == ["--unit=citadel-llm@m.service", "--after-cursor=s=1;i=2"]
    assert stat.S_IMODE((tmp_path / "m.log").stat().st_mode) & 0o137 == 0
    (tmp_path / "m.cursor").write_text("--directory=/srv")
    assert journal_command("m", file.position(1010))[-1] == "--since=@1000"


def test_entries_of_an_earlier_boot_are_followed_too() -> None:
    """journalctl --follow alone shows the current boot only."""
    assert "--merge" in journal_command("m", "s=1;i=1")


def test_after_a_rotation_lines_go_to_a_new_file(file: LogFile, tmp_path: Path) -> None:
    file.append([Entry("s=1;i=1", "a\n")])
    (tmp_path / "m.log").rename(tmp_path / "m.log.1")
    file.append([Entry("s=1;i=2", "b\n")])
    assert [(tmp_path / name).read_text() for name in ("m.log.1", "m.log")] == ["a\n", "b\n"]


def test_failed_write_does_not_move_the_cursor(file: LogFile, tmp_path: Path) -> None:
    file.append([Entry("s=1;i=1", "a\n")])
    (tmp_path / "m.log").unlink()
    (tmp_path / "m.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        file.append([Entry("s=1;i=2", "b\n")])
    assert file.position(1010) == "s=1;i=1"
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def pipe() -> Callable[[bytes], tuple[int, int]]:
    def make(content: bytes) -> tuple[int, int]:
        reader, writer = os.pipe()
        os.write(writer, content)
        return reader, writer

    return make


def test_entries_received_before_a_stop_are_written(
    file: LogFile, tmp_path: Path, pipe: Callable[[bytes], tuple[int, int]]
) -> None:
    source, _ = pipe(entry(1) + entry(2) + entry(3)[:20])
    stop, _ = pipe(b"x")
    assert follow(source, stop, file)
    assert [line.split(": ")[1] for line in (tmp_path / "m.log").read_text().splitlines()] == ["line 1", "line 2"]
    assert file.position(1010) == "s=1;i=2", "half an entry is for the next start"


def test_too_large_entry_is_left_out(file: LogFile, tmp_path: Path, pipe: Callable[[bytes], tuple[int, int]]) -> None:
    source, writer = pipe(entry(1))

    def write() -> None:
        with os.fdopen(writer, "wb") as stream:
            stream.write(entry(2, "x" * 1_000_000) + entry(3))

    thread = threading.Thread(target=write)
    thread.start()
    assert not follow(source, pipe(b"")[0], file, largest_bytes=100_000)
    thread.join()
    assert [line.split(": ")[1] for line in (tmp_path / "m.log").read_text().splitlines()] == ["line 1", "line 3"]
    assert file.position(1010) == "s=1;i=3"


def test_end_of_the_journal_is_not_a_stop(file: LogFile, pipe: Callable[[bytes], tuple[int, int]]) -> None:
    source, writer = pipe(entry(1))
    os.close(writer)
    assert not follow(source, pipe(b"")[0], file)
    assert file.position(1010) == "s=1;i=1"


def test_unit_wants_its_log_follower_if_log_to_file_is_set(root: Root) -> None:
    root.instance("m", GOOD)
    assert "citadel-llm-log" not in drop_in(root, "m")
    root.host("LOG_TO_FILE=yes\n")
    lines = drop_in(root, "m").splitlines()
    assert "Wants=citadel-llm-log@m.service" in lines and "After=citadel-llm-log@m.service" in lines
    root.instance("refused", "PORT=x\n")
    assert "Wants=citadel-llm-log@refused.service\n" in drop_in(root, "refused")


def test_other_log_directory_is_bound_and_causes_a_warning(root: Root, tmp_path: Path) -> None:
    root.host("LOG_TO_FILE=yes\n")
    rotating = tmp_path / "logrotate"
    rotating.touch()
    (missing,) = log_files.findings(str(root), rotating)
    assert not missing.fatal and "install -d -o agent0 -g adm -m 0750 /var/log/citadel-llm" in missing.text
    for directory in ("var/log/citadel-llm", "srv/logs"):
        (root.path / directory).mkdir(parents=True)
    assert not log_files.findings(str(root), rotating)
    assert not made(root)[0]
    root.host("LOG_TO_FILE=yes\nVLLM_LOG_PATH=/srv/logs\n")
    assert "BindPaths=-/srv/logs\n" in made(root)[0]["citadel-llm-log@.service.d/50-settings.conf"]
    (found,) = log_files.findings(str(root), rotating)
    assert not found.fatal and found.text.startswith("VLLM_LOG_PATH=/srv/logs")
    assert [finding.text.split(",")[0] for finding in log_files.findings(str(root), tmp_path / "none")][1:] == [
        "LOG_TO_FILE=yes"
    ]
    root.host("VLLM_LOG_PATH=/srv/logs\n")
    assert not log_files.findings(str(root), tmp_path / "none")
