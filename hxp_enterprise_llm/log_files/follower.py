"""Appends an instance's journal to its log file, and stores how far it got."""

import os
import re
import selectors
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hxp_enterprise_llm.log_files.entry import FIELDS, Entry, parse
from hxp_enterprise_llm.settings.units import unit_name

QUIET_SEC, LONGEST_STOP_SEC = 1.0, 5.0
"""A stop waits until no line has arrived for the first time, and at most for the second: the last lines of an instance
reach the journal after its unit has ended."""
CHUNK_BYTES = 1 << 16
LARGEST_ENTRY_BYTES = 1 << 20
"""A larger entry, which only code in a compromised engine sends, could take more than the memory of the unit."""
BEFORE_SEC = 10
"""A new log file begins this many seconds back: the instance may start at the same time as its follower."""
_POSITION = re.compile(r"@[0-9]{1,12}|[0-9a-z=;]{1,300}")


class LogFile:
    """The log file of one instance, and the file with its position in the journal.

    The position is the cursor of the last entry. Before the first entry, it is the time to begin at: @ and seconds
    since the epoch. Both files belong to one user. The log file is opened for every batch of entries: once logrotate
    has renamed it, the next batch goes to a new file.
    """

    def __init__(self, path: Path, position_file: Path) -> None:
        self._path = path
        self._position_file = position_file

    def position(self, now: float) -> str:
        """Where to continue in the journal.

        If there is no valid position, it is set to a time just before `now` (seconds since the epoch). Raises OSError.
        """
        try:
            text = self._position_file.read_text(encoding="ascii")
            if _POSITION.fullmatch(text):
                return text
        except (FileNotFoundError, UnicodeDecodeError):
            pass
        # Stored, so that the next attempts begin there too if the log file cannot be written for a while.
        begin = f"@{int(now) - BEFORE_SEC}"
        self._store(begin)
        return begin

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries, then the position: a crash in between repeats entries, but loses none.

        Raises OSError; the stored position is then still that of the previous entries.
        """
        content = "".join(entry.text for entry in entries).encode("utf-8", "backslashreplace")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o640)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(content):
                    written += os.write(descriptor, content[written:])
            except OSError:
                # The disk is full: remove incomplete output, so that no line is cut or repeated once there is space.
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        self._store(entries[-1].cursor)

    def _store(self, position: str) -> None:
        partial = self._position_file.with_suffix(".part")
        partial.write_text(position, encoding="ascii")
        partial.replace(self._position_file)


def journal_command(instance: str, position: str) -> list[str]:
    """The command that prints the entries of an instance's unit after `position`, and then new ones.

    Without --merge, --follow shows entries of the current boot only: lines logged at a shutdown would be missing.
    """
    begin = f"--since={position}" if position.startswith("@") else f"--after-cursor={position}"
    fields = f"--output-fields={','.join(FIELDS)}"
    unit = f"--unit={unit_name(instance)}"
    return ["journalctl", "--follow", "--merge", "--no-tail", "--all", "--quiet", "--output=json", fields, unit, begin]


def follow(source: int, stop: int, file: LogFile, largest_bytes: int = LARGEST_ENTRY_BYTES) -> bool:
    """Append the entries that arrive at the descriptor `source` until `stop` becomes readable; then the last ones.

    Returns True after a stop, False if `source` ended. Raises OSError if the file cannot be written.
    """
    rest, dropping = b"", False
    end = float("inf")
    # Not with epoll: the kernel limits the epoll watches of a user, and models run as the same one.
    with selectors.PollSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        selector.register(stop, selectors.EVENT_READ)
        while True:
            stopping = end < float("inf")
            ready = {key.fd for key, _ in selector.select(min(QUIET_SEC, end - time.monotonic()) if stopping else None)}
            if stop in ready:
                selector.unregister(stop)
                end = time.monotonic() + LONGEST_STOP_SEC
            if source in ready:
                chunk = os.read(source, CHUNK_BYTES)
                if not chunk:
                    return stopping
                *lines, rest = (rest + chunk).split(b"\n")
                if dropping:
                    lines, rest, dropping = (lines[1:], rest, False) if lines else ([], b"", True)
                if len(rest) > largest_bytes:
                    print(f"an entry of more than {largest_bytes} bytes is left out", file=sys.stderr)
                    rest, dropping = b"", True
                if lines:
                    file.append([parse(line) for line in lines])
            if stopping and (not ready or time.monotonic() > end):
                return True
