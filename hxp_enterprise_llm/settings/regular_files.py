"""How a path is opened that may not be a regular file, or may be replaced meanwhile.

Root reads files in directories that other users may write: models, run-time directories, the monitor's store. Reading a
FIFO would wait for a writer, opening a device can have an effect (such as starting a watchdog), and a file may be as
large as the disk. Standard library only, see `grammar`.
"""

import errno
import os
import stat

READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
LOOKING = os.O_PATH | os.O_CLOEXEC  # finds the file without opening it


def opened(path: str | os.PathLike[str], follow: bool = True, directory: int | None = None) -> int:
    """Open a regular file for reading and return its descriptor; with `follow`, also through a symbolic link.

    `directory` is the descriptor of the directory to which a relative path refers. Raises OSError: with EINVAL for any
    other kind of file, with ELOOP for a link.
    """
    flags = LOOKING if follow else LOOKING | os.O_NOFOLLOW
    found = os.open(path, flags, dir_fd=directory)
    try:
        check(os.fstat(found))
        # Opens the checked file, whatever is at `path` by now.
        return os.open(f"/proc/self/fd/{found}", READING)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    finally:
        os.close(found)


def read(path: str | os.PathLike[str], largest: int, follow: bool = True, directory: int | None = None) -> bytes:
    """The content of a regular file. Raises OSError as `opened` does, and with EFBIG above `largest` bytes."""
    descriptor = opened(path, follow, directory)
    try:
        content = os.read(descriptor, largest + 1)
        # A read may return less than the rest of the file.
        while len(content) <= largest and (more := os.read(descriptor, largest + 1 - len(content))):
            content += more
    finally:
        os.close(descriptor)
    if len(content) > largest:
        size = f"{largest >> 20} MB" if largest >> 20 else f"{largest >> 10} KiB"
        raise OSError(errno.EFBIG, f"is larger than {size}", os.fspath(path))
    return content


def check(status: os.stat_result) -> None:
    """Raise OSError unless `status` is that of a regular file."""
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")
