"""Messages to systemd: sd_notify(3), and nothing at all where there is no systemd."""

import logging
import os
import socket

log = logging.getLogger(__name__)

RECOVERING, IMPORTING, LOADING = "Recovering", "Importing vLLM", "Loading"
"""How a status begins while no server answers, though the unit may be active: its engine is being replaced."""
RELOAD_REFUSED = "Ready: with the old settings; the reload was refused"
"""How a status begins after a reload that changed nothing."""
WENT_BACK = "Ready: with the old settings; the server could not start with the new ones"
"""How a status begins after a reload that was taken up in vain; for systemd it is done."""
WAITED = "; requests waited meanwhile: "
"""In a status after a reload that did not start the new server beside the old one; the reason follows."""
STATUS_LENGTH = 1000
"""How much of a status is sent (characters)."""
FEED_SEC = 1.0
"""How often something that takes long is to be followed by a word to systemd."""
STALL_MARGIN_SEC = 10.0
"""How much longer systemd waits than the main process, which can say what it was that stood still."""


class Notifier:
    """Sends state to the manager that started this process.

    `address` is the value of NOTIFY_SOCKET; without one every message is dropped.
    """

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    @classmethod
    def take(cls) -> "Notifier":
        """Take the address out of this process's environment: a child of it must not say READY for us."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def send(self, **state: str | int) -> None:
        """Send assignments such as READY=1 or STATUS='loading'."""
        if not self._address:
            return
        # systemd drops a whole message whose STATUS= is longer than a page.
        state = {name: value[:STATUS_LENGTH] if isinstance(value, str) else value for name, value in state.items()}
        message = "\n".join(f"{name}={str(value).replace(chr(10), '; ')}" for name, value in state.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(message.encode(), self._address)

    def say(self, status: str, **state: int) -> None:
        """Send a status, beside assignments, and log it."""
        log.info("%s", status)
        self.send(STATUS=status, **state)

    def feed(self, longer: float = 0) -> None:
        """Keep systemd's watchdog quiet, and have a start or a reload that gets on take up to `longer` s more."""
        extension = {"EXTEND_TIMEOUT_USEC": round((longer + STALL_MARGIN_SEC) * 1e6)} if longer else {}
        self.send(WATCHDOG=1, **extension)
