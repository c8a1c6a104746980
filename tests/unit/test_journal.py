import logging
import socket
import sys
from pathlib import Path

import pytest

from hxp_enterprise_llm.system import journal


def fields(datagram: bytes) -> dict[str, str]:
    found = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        length = int.from_bytes(rest[:8], "little")
        found[name.decode()] = rest[8 : 8 + length].decode()
        datagram = rest[9 + length :]
    return found


def test_a_record_carries_the_instance_and_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "ADDRESS", str(tmp_path / "journal"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(journal.ADDRESS)
        logger = logging.Logger("test")
        logger.addHandler(journal.JournalHandler("m"))
        logger.error("two lines\nMESSAGE_ID=forged", extra={"reason": "engine-died"})
        assert fields(reader.recv(4096)) == {
            "MESSAGE": "two lines\nMESSAGE_ID=forged",
            "PRIORITY": "3",
            "SYSLOG_IDENTIFIER": "citadel-llm-m",
            "CITADEL_SERVICE": "m",
            "CITADEL_REASON": "engine-died",
        }


def test_messages_go_to_stdout_without_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "ADDRESS", str(tmp_path / "none"))
    logger = logging.Logger("test")
    logger.addHandler(journal.JournalHandler("m"))
    logger.info("said")
    assert capsys.readouterr().out == "said\n"


def test_log_lines_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("test")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(journal.LineFormatter())
    logger.addHandler(handler)
    logger.error("%s", "\x1b]0;title\x07\x9b31m\u202eX\nforged: line")
    try:
        raise ValueError("\x1b[31m")
    except ValueError:
        logger.exception("failed")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "\\x1b]0;title\\x07\\x9b31m\\u202eX; forged: line"
    assert rest[0] == "failed" and rest[-1] == "ValueError: \\x1b[31m"
