"""Root's files that a service needs and its user may not read: which there are, and how they are read for it.

They reach a start as systemd credentials, by the generator's drop-in, and a reload through `reload_command`.
Standard library only, see `settings_file`.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Mapping
from typing import Any

from hxp_enterprise_llm.settings.grammar import READING

API_KEY = "api-key"
HUB_TOKEN = "hub-token"  # noqa: S105  a name, no token
KEYS = {
    API_KEY: "API_KEY_FILE",
    "tls-cert": "TLS_CERT_FILE",
    "tls-key": "TLS_KEY_FILE",
    HUB_TOKEN: "HUB_TOKEN_FILE",
}
"""The credentials by the name that systemd knows them by, and the key of the settings that names the file of each."""
LARGEST_BYTES = 1 << 20
"""What systemd takes as a credential."""
DIRECTORY = "/etc/citadel-llm"
"""Where files of keys are, unless the settings say otherwise."""
MISSING = "not there"
"""What a service gets for a file that is not there. It is neither a key, nor PEM, nor a token: no file can mean it."""


def lock(root: str = "/") -> int:
    """Let one at a time read keys and write them back, or hand them over; others wait until it closes this descriptor.

    The lock is on the directory of keys, whichever files they are in: no rename replaces it, and since nobody but root
    may open it, nobody else can hold the lock and so keep a key from being revoked. Raises OSError.
    """
    directory = os.path.join(root, DIRECTORY.lstrip("/"))
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def files(values: Mapping[str, Any]) -> dict[str, str]:
    """The files of one instance's settings, by the name of the credential."""
    named = {name: str(values[key]) for name, key in KEYS.items() if values[key]}
    if not values["ALLOW_DOWNLOAD"]:
        named.pop(HUB_TOKEN, None)
    return named


def can_be_loaded(file: str) -> bool:
    """Whether systemd can load a file, or may be able to when the service starts: it may come with a mount."""
    try:
        _check(os.stat(file))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def read(file: str) -> bytes:
    """The content of a file, or MISSING if it cannot be had."""
    try:
        return content(file)
    except OSError:
        return MISSING.encode()


def content(file: str) -> bytes:
    """The content of a file, which a link may lead to. Raises OSError, also if it is no regular one or too large."""
    # Looked at first: opening a device can have an effect. Then again, for another may be there by now.
    _check(os.stat(file))
    with os.fdopen(os.open(file, READING), "rb") as stream:
        _check(os.fstat(stream.fileno()))
        return stream.read(LARGEST_BYTES)


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")
    if status.st_size > LARGEST_BYTES:
        raise OSError(errno.EFBIG, f"is larger than {LARGEST_BYTES >> 20} MB")
