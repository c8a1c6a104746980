"""Root's files that a service needs and its user may not read: which there are, and how they are read for it.

They reach a start as systemd credentials, by the generator's drop-in, and a reload through `reload_command`.
Standard library only, see `settings_file`.
"""

import os
import stat
from collections.abc import Mapping
from typing import Any

HUB_TOKEN = "hub-token"  # noqa: S105  a name, no token
KEYS = {
    "api-key": "API_KEY_FILE",
    "tls-cert": "TLS_CERT_FILE",
    "tls-key": "TLS_KEY_FILE",
    HUB_TOKEN: "HUB_TOKEN_FILE",
}
"""The credentials by the name that systemd knows them by, and the key of the settings that names the file of each."""
LARGEST_BYTES = 1 << 20
"""What systemd takes as a credential."""
MISSING = "not there"
"""What a service gets for a file that is not there. It is neither a key, nor PEM, nor a token: no file can mean it."""


def files(values: Mapping[str, Any]) -> dict[str, str]:
    """The files of one instance's settings, by the name of the credential."""
    named = {name: str(values[key]) for name, key in KEYS.items() if values[key]}
    if not values["ALLOW_DOWNLOAD"]:
        named.pop(HUB_TOKEN, None)
    return named


def can_be_loaded(file: str) -> bool:
    """Whether systemd can load a file, or may be able to when the service starts: it may come with a mount."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return _fit(status)


def read(file: str) -> bytes:
    """The content of a file, or MISSING if it cannot be had."""
    try:
        # O_NONBLOCK: opening a pipe would wait for its other end.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if _fit(os.fstat(stream.fileno())):
                return stream.read(LARGEST_BYTES)
    except OSError:
        pass
    return MISSING.encode()


def _fit(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_BYTES
