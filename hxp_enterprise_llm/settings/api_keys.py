"""Files of API keys: what API_KEY_FILE names. `citadel-llm key` writes them, a model's main process reads them.

A line is `sha256:DIGEST NAME DATE` for a key that `citadel-llm key add` has made and of which only the digest is kept,
or a key as it is, written by hand. A digest without salt is enough for keys that are drawn at random (256 bits).
"""

import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import NamedTuple

MADE = re.compile(r"sha256:([0-9a-f]{64})(?: ([A-Za-z0-9._-]{1,64}) ([0-9-]{10}))?")
BYTES = 32


class ApiKey(NamedTuple):
    """One key: its name and date (both empty for one written by hand), and the SHA-256 digest of it."""

    name: str
    made: str
    digest: str


def read(text: str) -> list[ApiKey]:
    """The keys of a file, in its order; empty lines and those that begin with # are none.

    Raises ValueError, which does not repeat the line, for one that is no key.
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
            raise ValueError(f"line {number} is no key: write one a line, in ASCII, without spaces")
    return keys


def digest(key: str) -> str:
    """What a key is compared by."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new(name: str) -> tuple[str, str]:
    """A new key, and the line of the file that stands for it."""
    key = secrets.token_urlsafe(BYTES)
    return key, f"sha256:{digest(key)} {name} {datetime.now(UTC):%Y-%m-%d}"
