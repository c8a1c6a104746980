"""A few rows of the corpus of hostile connections, one after another, for some seconds. hostile.py PORT PLAIN|TLS

Runs in the machine, beside a copy of tests/hostile_clients.py, with the distribution's Python. The corpus itself is
larger, and too long for a minute between two faults. An error is expected: the server may close at any time.
"""

import contextlib
import socket
import ssl
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hostile_clients import ROWS, Action, Endless, Hostile, Layer

PAUSE_SEC = 2.0
"""How long a connection stays open after its data are sent."""
MOST_SEC = 40.0
"""When no further connection is opened: a busy server may let each of them wait."""
CHOSEN = {
    ("heads that do not end", "half a head"): 50,
    ("oversized or malformed heads", "64 KiB in one field"): 1,
    ("oversized or malformed heads", "10,000 fields at once"): 1,
    ("bodies with a key", "half a body"): 10,
    ("lengths and chunks", "Content-Length and chunked"): 1,
    ("lengths and chunks", "endless extension, with a key"): 1,
    ("methods, paths, protocols", "the preface of HTTP/2"): 1,
    ("WebSockets", "an upgrade, then half a head"): 1,
    ("TLS", "noise"): 1,
    ("TLS", "half a handshake"): 1,
    ("TLS", "a handshake, then closed"): 100,
    ("readers that stop", "a long stream"): 2,
}
"""Number of connections of each row, by its group and name. The key in the rows is none; `open` needs none."""


def rows() -> list[tuple[Hostile, int]]:
    """The chosen rows with their numbers of connections. Raises KeyError if the corpus has no such row."""
    corpus = {(row.group, row.name): row for row in ROWS}
    return [(corpus[key], number) for key, number in CHOSEN.items()]


def data(row: Hostile) -> bytes:
    """What a row sends, with one block of what it sends endlessly."""
    sent = [step.data if isinstance(step, Endless) else step for step in row.sends]
    return b"".join(step for step in sent if isinstance(step, bytes))


def attack(row: Hostile, number: int, port: int, tls: ssl.SSLContext | None, end: float) -> None:
    """Open the connections of a row until `end` (monotonic, seconds), send its data, wait, and close them."""
    with contextlib.ExitStack() as connections:
        for _ in range(number):
            if time.monotonic() > end:
                return
            with contextlib.suppress(OSError):
                connection = connections.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                if tls and row.layer is Layer.HTTP:
                    connection = connections.enter_context(tls.wrap_socket(connection))
                connection.sendall(data(row))
        if Action.CLOSE not in row.sends:
            time.sleep(PAUSE_SEC)


def main(port: int, scheme: str) -> None:
    context = None
    if scheme == "TLS":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    end = time.monotonic() + MOST_SEC
    for row, number in rows():
        attack(row, number, port, context, end)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
