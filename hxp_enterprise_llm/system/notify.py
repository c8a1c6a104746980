"""Messages to systemd as in sd_notify(3); without systemd, they are dropped."""

import logging
import os
import socket

log = logging.getLogger(__name__)

STATUS_LENGTH = 1000
"""Length to which a status is cut (characters)."""
FEED_SEC = 1.0
"""How often the main process notifies systemd during a long operation (seconds)."""
STALL_MARGIN_SEC = 10.0
"""How much longer systemd waits than the main process, which can report what makes no progress (seconds)."""


PHASES = ("READY", "RELOADING", "STOPPING")
"""Assignments of which systemd uses only the last: a later one replaces an earlier one."""
MOMENTARY = ("WATCHDOG", "EXTEND_TIMEOUT_USEC")
"""Assignments that hold only at the time of sending, and are never sent again."""


class Notifier:
    """Sends state to the manager that started this process.

    `address` is the value of NOTIFY_SOCKET; without it every message is dropped. A message that cannot be delivered is
    not a reason to stop serving: its assignments are sent with the next message, at the latest with the next watchdog
    notification.
    """

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._unsent: dict[str, str | int] = {}
        self._failing = False

    @classmethod
    def take(cls) -> "Notifier":
        """Remove the address from this process's environment: a child must not send READY=1 in its name."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def send(self, within_sec: float = 0, **state: str | int) -> None:
        """Send assignments such as READY=1 or STATUS='loading'. Raises nothing.

        While systemd's queue is full, wait at most `within_sec` seconds; use more than 0 only for the last message.
        """
        if not self._address:
            return
        if any(phase in state for phase in PHASES):
            self._unsent = {name: value for name, value in self._unsent.items() if name not in PHASES}
        state = {**self._unsent, **state}
        # systemd drops a message whose STATUS= is longer than a page.
        state = {name: value[:STATUS_LENGTH] if isinstance(value, str) else value for name, value in state.items()}
        message = "\n".join(f"{name}={str(value).replace(chr(10), '; ')}" for name, value in state.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(within_sec)
                sender.sendto(message.encode("utf-8", "backslashreplace"), self._address)
        except OSError as error:
            self._unsent = {name: value for name, value in state.items() if name not in MOMENTARY}
            if not self._failing:
                log.warning("systemd cannot be notified (%s); trying again with the next message", error)
            self._failing = True
            return
        self._unsent = {}
        if self._failing:
            log.info("systemd is notified again")
        self._failing = False

    def say(self, status: str, **state: int) -> None:
        """Log a status, and send it with further assignments."""
        log.info("%s", status)
        self.send(STATUS=status, **state)

    def feed(self, longer: float = 0) -> None:
        """Feed systemd's watchdog; extend the timeout of a start or reload in progress by `longer` seconds."""
        extension = {"EXTEND_TIMEOUT_USEC": round((longer + STALL_MARGIN_SEC) * 1e6)} if longer else {}
        self.send(WATCHDOG=1, **extension)
