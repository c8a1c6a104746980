"""A few hostile clients, one after another, for some seconds. hostile.py PORT PLAIN|TLS

Runs in the machine, with the distribution's Python. An error is expected: the server may close at any time.
"""

import contextlib
import socket
import ssl
import sys
import time
from dataclasses import dataclass

PAUSE_SEC = 2.0
"""How long a connection stays open after its data are sent."""
MOST_SEC = 40.0
"""When no further connection is opened: a busy server may let each of them wait."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LONG = b'{"prompt": "x", "max_tokens": 1900, "ignore_eos": true, "stream": true, "n": 4}'


@dataclass(frozen=True)
class Hostile:
    """What the connections of a client send before they wait; `raw` ones send no TLS handshake."""

    name: str
    data: bytes
    connections: int = 1
    raw: bool = False


CLIENTS = (
    Hostile("half heads", HEAD, connections=50),
    Hostile("a header of 100 KiB", HEAD + b"X: " + b"x" * 102400 + b"\r\n\r\n"),
    Hostile("500 headers", HEAD + b"".join(b"X-%d: x\r\n" % number for number in range(500)) + b"\r\n"),
    Hostile("half a body", HEAD + b"Content-Length: 1000\r\n\r\n{", connections=10),
    Hostile("two lengths", HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    Hostile("endless chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n" + b"[" * 65536),
    Hostile("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Hostile("no HTTP", bytes(range(256)) * 16, raw=True),
    Hostile("TLS garbage", b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 512, raw=True),
    Hostile("early close", b"", connections=100, raw=True),
    Hostile("stream that is not read", HEAD + b"Content-Length: %d\r\n\r\n" % len(LONG) + LONG, connections=2),
)


def attack(client: Hostile, port: int, tls: ssl.SSLContext | None, end: float) -> None:
    """Open a client's connections until `end` (monotonic, seconds), send its data, wait, and close them."""
    with contextlib.ExitStack() as connections:
        for _ in range(client.connections):
            if time.monotonic() > end:
                return
            with contextlib.suppress(OSError):
                connection = connections.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                if tls and not client.raw:
                    connection = connections.enter_context(tls.wrap_socket(connection))
                connection.sendall(client.data)
        if client.data:
            time.sleep(PAUSE_SEC)


def main(port: int, scheme: str) -> None:
    context = None
    if scheme == "TLS":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    end = time.monotonic() + MOST_SEC
    for client in CLIENTS:
        attack(client, port, context, end)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
