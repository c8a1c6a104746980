"""Key files, which API_KEY_FILE names: `citadel-llm key` writes them, the main process of an instance reads them.

A line is `sha256:DIGEST NAME DATE` for a key from `citadel-llm key add`, of which only the digest is kept, or a key
written by hand. A digest without salt is enough for random keys of 256 bits. A fourth word, `metrics`, restricts the
key to /metrics. A version of the package that does not know a restriction refuses the file, see decision 11.
"""

import hashlib
import re
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

MADE = re.compile(r"sha256:([0-9a-f]{64})(?: ([A-Za-z0-9._-]{1,64}) ([0-9-]{10})( metrics)?)?")
BYTES = 32


class KeyKind(StrEnum):
    """The paths for which a key is valid."""

    API = "api"
    """All paths."""
    METRICS = "metrics"
    """Only /metrics."""


class ApiKey(NamedTuple):
    """One key: its name and date, both empty for a key written by hand, its SHA-256 digest, and its kind."""

    name: str
    made: str
    digest: str
    kind: KeyKind = KeyKind.API


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
            kind = KeyKind.METRICS if made[4] else KeyKind.API
            keys.append(ApiKey(made[2] or "", made[3] or "", made[1], kind))
        elif written.startswith("sha256:"):
            raise ValueError(
                f"line {number} is not a key that this version of citadel-llm key add writes: delete the line, or "
                "install the version that wrote it"
            )
        elif re.fullmatch(r"[!-~]+", written):
            keys.append(ApiKey("", "", digest(written)))
        else:
            raise ValueError(f"line {number} is not a key: write one key per line, in ASCII, without spaces")
    return keys


def digest(key: str) -> str:
    """The SHA-256 digest of a key, by which keys are compared."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new(name: str, kind: KeyKind = KeyKind.API) -> tuple[str, str]:
    """A new key, and its line for the file."""
    key = secrets.token_urlsafe(BYTES)
    words = [f"sha256:{digest(key)}", name, f"{datetime.now(UTC):%Y-%m-%d}"]
    if kind is KeyKind.METRICS:
        words.append(kind.value)
    return key, " ".join(words)
