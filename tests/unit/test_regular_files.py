"""Files in directories of other users: only regular files are opened, and only up to a size."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hxp_enterprise_llm.settings import regular_files


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _loop(path: Path) -> None:
    path.symlink_to(path)


OTHERS: dict[str, tuple[Callable[[Path], object], int]] = {
    "fifo": (os.mkfifo, errno.EINVAL),
    "directory": (Path.mkdir, errno.EINVAL),
    "socket": (_socket, errno.EINVAL),
    "device": (lambda path: path.symlink_to("/dev/zero"), errno.EINVAL),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), errno.EINVAL),
    "link to itself": (_loop, errno.ELOOP),
    "dangling link": (lambda path: path.symlink_to("none"), errno.ENOENT),
    "nothing": (lambda path: None, errno.ENOENT),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_files_are_not_opened(tmp_path: Path, kind: str) -> None:
    make, expected = OTHERS[kind]
    file = tmp_path / "file"
    make(file)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208  names, not paths
    with pytest.raises(OSError) as refused:
        regular_files.read(file, 10)
    assert (refused.value.errno, refused.value.filename) == (expected, str(file))
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_link_is_followed_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "link").symlink_to("blob")
    assert regular_files.read(tmp_path / "link", 7) == b"content"
    with pytest.raises(OSError, match="is a symbolic link"):
        regular_files.read(tmp_path / "link", 7, follow=False)


def test_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 2048)
    assert len(regular_files.read(file, 2048)) == 2048
    with pytest.raises(OSError, match="is larger than 1 KiB"):
        regular_files.read(file, 1024)
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(OSError, match="is larger than 3 MB"):
        regular_files.read(file, 3 << 20)


def test_file_replaced_after_the_check_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checked file is read, whatever is at its path when it is opened."""
    file = tmp_path / "file"
    file.write_bytes(b"checked")
    real = os.open

    def replace(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        found = real(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_PATH:
            file.unlink()
            os.mkfifo(file)
        return found

    monkeypatch.setattr(os, "open", replace)
    assert regular_files.read(file, 10) == b"checked"


def test_path_is_relative_to_the_given_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert regular_files.read("file", 4, directory=folder) == b"here"
    finally:
        os.close(folder)
