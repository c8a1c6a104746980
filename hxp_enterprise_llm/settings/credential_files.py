"""Files that a service needs and that only root can read: API keys, certificate, private key, token of the hub.

A start gets them as systemd credentials through the generator's drop-in, a reload through
`protocol.reload_request`. Standard library only, see `grammar`.
"""

import fcntl
import os
from collections.abc import Mapping
from typing import Any

from hxp_enterprise_llm.settings import regular_files

API_KEY = "api-key"
HUB_TOKEN = "hub-token"  # noqa: S105  a name, no token
KEYS = {
    API_KEY: "API_KEY_FILE",
    "tls-cert": "TLS_CERT_FILE",
    "tls-key": "TLS_KEY_FILE",
    HUB_TOKEN: "HUB_TOKEN_FILE",
}
"""The name of each credential in systemd, and the key of the settings that names its file."""
LARGEST_BYTES = 1 << 20
"""The largest credential that systemd accepts (bytes)."""
DIRECTORY = "/etc/citadel-llm"
"""The directory of key files, unless the settings name others."""
MISSING = "not there"
"""What a service gets for a missing file. It is no key, no PEM and no token, so no file can be mistaken for it."""


def lock(root: str = "/") -> int:
    """Lock settings files and key files for a change or a handover; others wait until this descriptor is closed.

    The lock is on the directory of keys, whichever files hold them: no rename replaces it, and only root can open it,
    so no other user can hold the lock and prevent the revocation of a key. Raises OSError.
    """
    directory = os.path.join(root, DIRECTORY.lstrip("/"))
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def files(values: Mapping[str, Any]) -> dict[str, str]:
    """The files that the settings of one instance name, by the name of the credential."""
    named = {name: str(values[key]) for name, key in KEYS.items() if values[key]}
    if not values["ALLOW_DOWNLOAD"]:
        named.pop(HUB_TOKEN, None)
    return named


def can_be_loaded(file: str) -> bool:
    """Whether systemd can load a file. A missing file may appear with a mount before the service starts."""
    try:
        status = os.stat(file)
        regular_files.check(status)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return status.st_size <= LARGEST_BYTES


def read(file: str) -> bytes:
    """The content of a file, or MISSING if it cannot be read."""
    try:
        return content(file)
    except OSError:
        return MISSING.encode()


def content(file: str) -> bytes:
    """The content of a file, also through a link. Raises OSError, also for a file that is not regular or too large."""
    return regular_files.read(file, LARGEST_BYTES)
