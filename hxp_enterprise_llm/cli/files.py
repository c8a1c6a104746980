"""Settings files and key files, changed by one process at a time, and replaced completely or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hxp_enterprise_llm.settings import credential_files
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted


@contextmanager
def locked(root: str = "/") -> Iterator[None]:
    """Hold the lock for changes of settings files and key files. Raises NotPermitted for users other than root."""
    directory = Path(root, credential_files.DIRECTORY[1:])
    try:
        descriptor = credential_files.lock(root)
    except PermissionError:
        raise NotPermitted("only root can change settings and keys; run it with sudo") from None
    except OSError as error:
        raise CitadelError(f"{directory}: {error.strerror}; systemd-tmpfiles --create creates it") from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def failures_of(file: Path) -> Iterator[None]:
    """Turn an OSError from writing `file` into a CitadelError that names the file or its directory."""
    try:
        yield
    except PermissionError:
        raise NotPermitted(f"{file.parent} is writable by root only; run it with sudo") from None
    except OSError as error:
        raise CitadelError(f"{file}: {error.strerror}") from None


@contextmanager
def draft(file: Path, content: str) -> Iterator[Path]:
    """A file beside `file` that can replace it, with its owner and mode (0600 for a new file); deleted at the end."""
    if file.is_symlink():
        raise CitadelError(f"{file} is a symbolic link; set API_KEY_FILE to its target")
    made = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    with failures_of(file):
        try:
            write(made, content, file)
            yield made
        finally:
            # The draft still exists unless it has replaced the file.
            with suppress(OSError):
                made.unlink()


def write(new: Path, content: str, like: Path) -> None:
    """Write a new file and sync it, with the owner, mode and extended attributes of `like` if that exists.

    Extended attributes hold access lists and security labels. Raises OSError.
    """
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        with suppress(FileNotFoundError):
            before = like.stat()
            os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, before.st_mode & 0o777)
            for name in os.listxattr(like):
                # Some file systems list attributes that nobody can set.
                with suppress(OSError):
                    os.setxattr(descriptor, name, os.getxattr(like, name))
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)


def put(made: Path, file: Path) -> None:
    """Replace `file` with a draft, safely even if the power fails. Raises OSError."""
    made.rename(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
