"""Key files, which API_KEY_FILE names: `citadel-llm key` writes them, the main process of an instance reads them.

A line is `sha256:DIGEST NAME DATE` for a key from `citadel-llm key add`, of which only the digest is kept, or a key
written by hand. A digest without salt is enough for random keys of 256 bits.
"""

import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import NamedTuple

MADE = re.compile(r"sha256:([0-9a-f]{64})(?: ([A-Za-z0-9._-]{1,64}) ([0-9-]{10}))?")
BYTES = 32


class ApiKey(NamedTuple):
    """One key: its name and date, both empty for a key written by hand, and its SHA-256 digest."""

    name: str
    made: str
    digest: str


def read(text: str) -> list[ApiKey]:
    """The keys of a file, in order, without empty lines and comments, which start with #.

    Raises ValueError for a line that is not a key; the message does not repeat the line.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        written = line.strip()
        if not written or written.startswith("#"):
            continue
        made = MADE.fullmatch(written)
        if made:
            keys.append(ApiKey(made[2] or "", made[3] or "", made[1]))
        elif re.fullmatch(r"[!-~]+", written) and not written.startswith("sha256:"):
            keys.append(ApiKey("", "", digest(written)))
        else:
            raise ValueError(f"line {number} is not a key: write one key per line, in ASCII, without spaces")
    return keys


def digest(key: str) -> str:
    """The SHA-256 digest of a key, by which keys are compared."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new(name: str) -> tuple[str, str]:
    """A new key, and its line for the file."""
    key = secrets.token_urlsafe(BYTES)
    return key, f"sha256:{digest(key)} {name} {datetime.now(UTC):%Y-%m-%d}"
