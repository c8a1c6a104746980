import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hxp_enterprise_llm.system.notify import Notifier


def test_notify_sends_one_assignment_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        Notifier.take().send(STATUS="two\nlines", READY=1)
        assert manager.recv(4096) == b"STATUS=two; lines\nREADY=1"


def test_notifier_unsets_notify_socket_and_tolerates_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@abstract")
    Notifier.take()
    Notifier.take().send(READY=1)


@pytest.fixture
def manager_at(tmp_path: Path) -> Callable[[], socket.socket]:
    """Opens the manager's socket, which does not exist before."""

    def open_socket() -> socket.socket:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        return manager

    return open_socket


def test_undelivered_state_is_sent_with_the_next_heartbeat(
    tmp_path: Path, manager_at: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    notifier.send(STATUS="Loading", RELOADING=1)
    notifier.feed(20)
    notifier.send(STATUS="Ready", READY=1)
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "logged once"
    with manager_at() as manager:
        notifier.feed()
        # Of READY= and RELOADING= the later one counts, and no extension of a timeout is sent late.
        assert sorted(manager.recv(4096).split(b"\n")) == [b"READY=1", b"STATUS=Ready", b"WATCHDOG=1"]
        notifier.feed()
        assert manager.recv(4096) == b"WATCHDOG=1", "sent once"


def test_a_full_queue_does_not_block_and_loses_nothing(tmp_path: Path, manager_at: Callable[[], socket.socket]) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    with manager_at() as manager, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"X=1", str(tmp_path / "notify"))
        notifier.send(STATUS="Ready", READY=1)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                assert manager.recv(4096) == b"X=1"
        notifier.feed()
        assert sorted(manager.recv(4096).split(b"\n")) == [b"READY=1", b"STATUS=Ready", b"WATCHDOG=1"]


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ECONNREFUSED, errno.EACCES, errno.EAGAIN, errno.ENOENT])
def test_no_error_of_the_socket_is_raised(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(socket.socket, "sendto", fail)
    Notifier("/nowhere").send(READY=1)
