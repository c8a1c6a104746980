"""A journal entry as a line of a log file."""

import json
from datetime import datetime
from typing import Any, NamedTuple

from hxp_enterprise_llm.settings.grammar import printable

FIELDS = ("MESSAGE", "SYSLOG_IDENTIFIER", "_COMM", "SYSLOG_PID", "_PID", "_HOSTNAME", "_SOURCE_REALTIME_TIMESTAMP")
"""The fields of a line; journalctl adds the cursor and the time of arrival."""

_INDENT = "\n    "


class Entry(NamedTuple):
    """One entry: its position in the journal, and its text with the final newline."""

    cursor: str
    text: str


def parse(line: bytes) -> Entry:
    """Parse one line of `journalctl --output=json`. Raises ValueError for any other line."""
    fields = json.loads(line)
    if not isinstance(fields, dict) or not {"__CURSOR", "__REALTIME_TIMESTAMP"} <= fields.keys():
        raise ValueError("not an entry of the journal")
    moment = int(fields.get("_SOURCE_REALTIME_TIMESTAMP") or fields["__REALTIME_TIMESTAMP"]) / 1e6
    time = datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")
    sender = _word(fields.get("SYSLOG_IDENTIFIER") or fields.get("_COMM") or "unknown")
    pid = _word(fields.get("SYSLOG_PID") or fields.get("_PID") or "")
    # Further lines are indented, so they cannot look like entries of their own.
    message = _text(fields.get("MESSAGE")).rstrip("\n").replace("\n", _INDENT)
    host = _word(fields.get("_HOSTNAME") or "localhost")
    return Entry(str(fields["__CURSOR"]), f"{time} {host} {sender}{f'[{pid}]' if pid else ''}: {message}\n")


def _text(value: Any) -> str:
    """The text of a field: journalctl writes bytes that are not text as numbers, and a repeated field as a list."""
    if isinstance(value, list):
        if all(isinstance(number, int) for number in value):
            return printable(bytes(value).decode("utf-8", "backslashreplace"))
        return "\n".join(map(_text, value))
    return printable("" if value is None else str(value))


def _word(value: Any) -> str:
    """The text of a field before the message, without line breaks, with which the sender could forge an entry."""
    return _text(value).replace("\n", "\\n")
