"""Log records as journal entries with fields of their own, in its native protocol (JOURNAL_NATIVE_PROTOCOL of systemd).

Lines on standard output, which vLLM's processes write, have no such fields.
"""

import logging
import socket
import sys
from typing import Any

from hxp_enterprise_llm.settings.grammar import printable

ADDRESS = "/run/systemd/journal/socket"
LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""Priorities of syslog(3)."""


class LineFormatter(logging.Formatter):
    """The message of a record on one line, and a traceback below it, without control characters.

    A message may repeat text from a model's files, a server or the hub.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message; the parts of an error with several lines are joined."""
        return printable(super().formatMessage(record)).replace("\n", "; ")

    def formatException(self, ei: Any) -> str:
        """The traceback."""
        return printable(super().formatException(ei))


class JournalHandler(logging.Handler):
    """Sends each log record of an instance as one journal entry.

    CITADEL_SERVICE= is the instance; CITADEL_REASON= is the code of an error if the record has one as `reason`.
    """

    def __init__(self, instance: str) -> None:
        super().__init__()
        self._instance = instance
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, or print it to standard output if there is no journal."""
        message = self.format(record)
        fields = {
            "MESSAGE": message,
            "PRIORITY": str(LEVELS.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": f"citadel-llm-{self._instance}",
            "CITADEL_SERVICE": self._instance,
        }
        reason = getattr(record, "reason", "")
        if reason:
            fields["CITADEL_REASON"] = reason
        try:
            self._sender.sendto(b"".join(_field(*field) for field in fields.items()), ADDRESS)
        except OSError:
            print(message, file=sys.stdout, flush=True)


def _field(name: str, value: str) -> bytes:
    """One field, preceded by its length, so that no value can start another field."""
    content = value.encode("utf-8", "backslashreplace")
    return name.encode() + b"\n" + len(content).to_bytes(8, "little") + content + b"\n"
