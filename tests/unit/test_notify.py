import socket
from pathlib import Path

import pytest

from hxp_enterprise_llm.system.notify import Notifier


def test_state_reaches_the_manager_one_assignment_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        Notifier.take().send(STATUS="two\nlines", READY=1)
        assert manager.recv(4096) == b"STATUS=two; lines\nREADY=1"


def test_the_address_is_taken_away_from_children_and_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@abstract")
    Notifier.take()
    Notifier.take().send(READY=1)
