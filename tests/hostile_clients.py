"""Connections that try to harm a model's API server, as a table: what each sends, and how it must end.

`{key}` and `{model}` in what is sent stand for a valid key and the model's name. A connection whose steps are over
waits until the server closes it. `tests/hostile_run.py` makes these connections. Standard library only.
"""

import gzip
import json
import random
import ssl
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple


class Endless(NamedTuple):
    """Send `data` again and again, until the server closes the connection."""

    data: bytes


class Repeated(NamedTuple):
    """Send `data` a number of times."""

    data: bytes
    times: int


class Slowly(NamedTuple):
    """Send `data` again and again, one byte a second."""

    data: bytes


class Pause(NamedTuple):
    """Wait (seconds)."""

    seconds: float


class Action(Enum):
    """What a client does besides sending."""

    AWAIT_ANSWER = "wait for the first bytes of an answer"
    STOP_READING = "read no more, and keep the connection"
    HALF_CLOSE = "end the sending side only"
    CLOSE = "close the connection"
    RESET = "abort the connection"


class Layer(Enum):
    """Where a connection sends."""

    HTTP = "inside TLS, if the server has it"
    BELOW_TLS = "on the TCP connection, after the handshake"
    INSTEAD_OF_TLS = "on the TCP connection, without a handshake"


Step = bytes | Endless | Repeated | Slowly | Pause | Action
AT_ONCE_SEC = 10.0
"""For connections that the server can refuse or answer at once; includes its wait for another request."""
HEAD_SEC = 10.0
"""Bound of the time to send a request's head, and of a TLS handshake."""
BODY_SEC = 30.0
"""Bound of the time until the server closes a connection whose body is too slow."""
CLIENT_TIMEOUT_SEC = 10.0
"""The setting of that name, as the test sets it: for clients that stop reading."""
LEFT = "left"
"""Outcome of a connection that the client ends."""


Table = Sequence[tuple[Any, ...]]
"""Rows of one group: the arguments of `Hostile` behind the group."""


class Hostile(NamedTuple):
    """A row of the table.

    `expects` lists the outcomes that the server may choose from, separated by "or": the statuses of its answers, equal
    neighbours once, or "closed" if it closes without an answer. `within`: the time from the end of the handshake
    to the close (seconds).
    """

    group: str
    name: str
    sends: tuple[Step, ...]
    expects: str
    within: float = AT_ONCE_SEC
    connections: int = 1
    layer: Layer = Layer.HTTP


def head(*fields: bytes, line: bytes = b"GET /v1/models HTTP/1.1", host: bool = True) -> bytes:
    """A request's head."""
    lines = [line, *([b"Host: localhost"] if host else []), *fields, b"", b""]
    return b"\r\n".join(lines)


def post(*fields: bytes, path: bytes = b"/v1/completions", version: bytes = b"1.1") -> bytes:
    """The head of a POST request; the fields name the length of the body."""
    return head(b"Content-Type: application/json", *fields, line=b"POST " + path + b" HTTP/" + version)


def keyed(body: bytes, *fields: bytes, path: bytes = b"/v1/completions") -> bytes:
    """A complete POST request with a key."""
    # The model's name changes the length of the body: chunked, it needs none.
    return post(KEY, CHUNKED, *fields, path=path) + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def completion(**values: object) -> bytes:
    """The body of a request for a completion."""
    return json.dumps({"prompt": "License", "max_tokens": 4, "ignore_eos": True, **values}).encode()


def client_hello(**options: object) -> bytes:
    """The first message of a TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in options.items():
        setattr(context, name, value)
    sent = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("a handshake without a server")


def record(kind: int, content: bytes, version: bytes = b"\3\3") -> bytes:
    """A TLS record."""
    return bytes([kind]) + version + len(content).to_bytes(2, "big") + content


def frame(code: int, content: bytes, *, length: bytes = b"", masked: bool = True) -> bytes:
    """A frame of a WebSocket; `length` replaces the byte that holds the length."""
    mask = b"\0\0\0\0" if masked else b""
    return bytes([code]) + (length or bytes([len(content) | 128 * masked])) + mask + content


KEY = b"Authorization: Bearer {key}"
CHUNKED = b"Transfer-Encoding: chunked"
HIDDEN = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request in a body. If a server takes it for a request, the outcome contains 200."""
REQUEST = head()
HALF = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Half: "
GET_HEALTH = head(line=b"GET /health HTTP/1.1")
BLOCK = b"x" * 65536
CHUNK = b"10000\r\n" + BLOCK + b"\r\n"
FIVE_GB = 5 * 10**9
NOISE = random.Random(12).randbytes(65536)  # noqa: S311  to be repeated, not to be unknown
LONG_STREAM = completion(max_tokens=1900, stream=True, logprobs=5, n=2)
SHORT_STREAM = completion(max_tokens=200, stream=True)
HELLO = client_hello()
OLD_HELLO = client_hello(minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_2)
UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
NONCE = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
REALTIME = b"GET /v1/realtime HTTP/1.1"
BOMB = gzip.compress(b"[" * 10**8)

HEAD_TOO_LARGE = "431 or 400 or closed"
TOO_SLOW = "408 or closed"
NO_KEY = "401"
BAD = "400"
CUT = "401 or 401 400 or 400"
"""The body is wrong, and the server may answer before it reads the body."""
TOO_LARGE = "413"

HEADS: Table = [
    ("endless fields", (b"GET / HTTP/1.1\r\n", Endless(b"a:b\r\n" * 1000)), HEAD_TOO_LARGE),
    ("endless value of a field", (HALF, Endless(BLOCK)), HEAD_TOO_LARGE),
    ("endless name of a field", (b"GET / HTTP/1.1\r\n", Endless(BLOCK)), HEAD_TOO_LARGE),
    ("endless path", (b"GET /", Endless(BLOCK)), HEAD_TOO_LARGE),
    ("endless query", (b"GET /health?", Endless(BLOCK)), HEAD_TOO_LARGE),
    ("endless method", (Endless(BLOCK),), HEAD_TOO_LARGE),
    ("endless folded field", (HALF, Endless(b"\r\n folded" * 1000)), HEAD_TOO_LARGE),
    ("endless empty lines before the request", (Endless(b"\r\n" * 1000),), HEAD_TOO_LARGE),
    ("endless cookies, with a key", (b"GET / HTTP/1.1\r\n", KEY, b"\r\n", Endless(b"Cookie: a=b\r\n" * 99)), HEAD_TOO_LARGE),
    ("101 fields", (head(*[b"a: b"] * 100),), HEAD_TOO_LARGE),
    ("10,000 fields at once", (head(*[b"a: b"] * 10_000),), HEAD_TOO_LARGE),
    ("64 KiB in one field", (head(b"a: " + BLOCK),), HEAD_TOO_LARGE),
    ("a path of 64 KiB", (head(line=b"GET /" + BLOCK + b" HTTP/1.1"),), HEAD_TOO_LARGE),
    ("a path of 60 KB", (head(line=b"GET /" + BLOCK[:60_000] + b" HTTP/1.1"),), NO_KEY),
    ("60 fields of 1,000 bytes", (head(*[b"a: " + BLOCK[:1000]] * 60),), NO_KEY),
    ("a small head, then a large one", (GET_HEALTH, Action.AWAIT_ANSWER, HALF, Endless(BLOCK)), "200 431 or 200 400 or 200"),
    ("a large head behind a small one", (GET_HEALTH + HALF, Endless(BLOCK)), "200 431 or 200 400 or 200 or 431 or closed"),
    ("endless trailers", (post(CHUNKED) + b"0\r\n", Endless(b"a: b\r\n" * 1000)), "401 or 401 431 or 401 400 or 431 or closed"),
    ("endless trailers, with a key", (post(KEY, CHUNKED) + b"0\r\n", Endless(b"a: b\r\n" * 1000)), HEAD_TOO_LARGE),
    ("a key in a trailer", (post(CHUNKED) + b"2\r\n{}\r\n0\r\n" + KEY + b"\r\n\r\n",), NO_KEY),
    ("a field without a colon", (head(b"no colon"),), BAD),
    ("a field without a name", (head(b": b"),), BAD),
    ("a space before the colon", (head(b"a : b"),), BAD),
    ("NUL in a name", (head(b"a\0b: c"),), BAD),
    ("NUL in a value", (head(b"a: b\0c"),), BAD),
    ("escape sequence in a value", (head(b"a: \x1b[31m"),), "400 or 401"),
    ("invalid UTF-8 in a value", (head(b"a: \xff\xfe"),), NO_KEY),
    ("invalid UTF-8 in the key", (head(b"Authorization: Bearer \xff\xfe"),), NO_KEY),
    ("a key of 60 KB", (head(b"Authorization: Bearer " + BLOCK[:60_000]),), NO_KEY),
    ("no scheme before the key", (head(b"Authorization: {key}"),), NO_KEY),
    ("a wrong key, then a valid key", (head(b"Authorization: Bearer no", KEY),), NO_KEY),
    ("line feeds alone", (REQUEST.replace(b"\r\n", b"\n"),), "400 or 401"),
    ("carriage returns alone", (REQUEST.replace(b"\r\n", b"\r"),), "400 or closed"),
    ("a carriage return in a value", (head(b"a: b\rc: d"),), BAD),
]  # fmt: skip
UNFINISHED: Table = [
    ("nothing", (), TOO_SLOW),
    ("one byte", (b"G",), TOO_SLOW),
    ("a request line", (b"GET / HTTP/1.1\r\n",), TOO_SLOW),
    ("half a head", (HALF,), TOO_SLOW),
    ("half a head, with a key", (b"GET /v1/models HTTP/1.1\r\n" + KEY,), TOO_SLOW),
    ("a head without its last line feed", (REQUEST[:-1],), TOO_SLOW),
    ("a head byte by byte", (Slowly(REQUEST[:-4] + b"x" * 100),), TOO_SLOW),
    ("a path byte by byte", (b"GET /", Slowly(b"x")), TOO_SLOW),
    ("a field every second", (b"GET / HTTP/1.1\r\n", *(b"a: b\r\n", Pause(1)) * 60), TOO_SLOW),
    ("an empty line every second", (b"\r\n", Pause(1)) * 60, TOO_SLOW),
    ("half a head, half closed", (HALF, Action.HALF_CLOSE), "400 or 408 or closed"),
    ("nothing, half closed", (Action.HALF_CLOSE,), TOO_SLOW),
    ("an answered request, then nothing", (GET_HEALTH,), "200"),
    ("an answered request, then half a head", (GET_HEALTH, Action.AWAIT_ANSWER, HALF), "200 or 200 408"),
    ("an answered request, then a head byte by byte", (GET_HEALTH, Action.AWAIT_ANSWER, Slowly(HALF)), "200 or 200 408"),
    ("an answered request, then empty lines", (GET_HEALTH, Action.AWAIT_ANSWER, Slowly(b"\r\n")), "200 or 200 408"),
    ("an answered request with a key, then half a head", (head(KEY), Action.AWAIT_ANSWER, HALF), "200 or 200 408"),
    ("a request and a half", (GET_HEALTH + HALF,), "200 or 200 408"),
]  # fmt: skip
FLOODS: Table = [
    ("3,000 half requests", (HALF,), "408 or closed", HEAD_SEC, 3000),
    ("2,000 silent connections", (), "408 or closed", HEAD_SEC, 2000),
    ("500 heads byte by byte", (Slowly(HALF),), "408 or closed", HEAD_SEC, 500),
    ("1,000 connections closed at once", (Action.CLOSE,), "left or closed", AT_ONCE_SEC, 1000),
    ("1,000 connections reset at once", (Action.RESET,), "left or closed", AT_ONCE_SEC, 1000),
    ("1,000 requests without a key", (REQUEST,), "401 or 503 or closed", AT_ONCE_SEC, 1000),
]  # fmt: skip
LENGTHS: Table = [
    ("Content-Length and chunked", (post(b"Content-Length: 6", CHUNKED) + b"0\r\n\r\n" + HIDDEN,), BAD),
    ("chunked and Content-Length", (post(CHUNKED, b"Content-Length: 6") + b"0\r\n\r\n" + HIDDEN,), BAD),
    ("Content-Length twice, equal", (post(*[b"Content-Length: 2"] * 2) + b"{}" + HIDDEN,), BAD),
    ("Content-Length twice, different", (post(b"Content-Length: 2", b"Content-Length: 44") + b"{}" + HIDDEN,), BAD),
    ("a list of lengths", (post(b"Content-Length: 2, 2") + b"{}" + HIDDEN,), BAD),
    ("two lengths in one field", (post(b"Content-Length: 2 44") + b"{}" + HIDDEN,), BAD),
    ("a negative length", (post(b"Content-Length: -1") + HIDDEN,), BAD),
    ("a length with a plus sign", (post(b"Content-Length: +2") + b"{}" + HIDDEN,), BAD),
    ("a hexadecimal length", (post(b"Content-Length: 0x2") + b"{}" + HIDDEN,), BAD),
    ("an exponent as length", (post(b"Content-Length: 1e1") + HIDDEN,), BAD),
    ("a fraction as length", (post(b"Content-Length: 2.0") + b"{}" + HIDDEN,), BAD),
    ("a length with a grouping", (post(b"Content-Length: 4_4") + HIDDEN,), BAD),
    ("an Arabic digit as length", (post("Content-Length: ٢".encode()) + b"{}" + HIDDEN,), BAD),
    ("an empty length", (post(b"Content-Length: ") + HIDDEN,), BAD),
    ("a vertical tab behind the length", (post(b"Content-Length: 2\x0b") + b"{}" + HIDDEN,), BAD),
    ("NUL behind the length", (post(b"Content-Length: 2\0") + b"{}" + HIDDEN,), BAD),
    ("a space before the colon of the length", (post(b"Content-Length : 2") + b"{}" + HIDDEN,), BAD),
    ("a folded length", (post(b"Content-Length:\r\n 2") + b"{}" + HIDDEN,), "400 or 401"),
    ("a length of 2**64", (post(b"Content-Length: 18446744073709551616"),), BAD),
    ("a length of 2**64 - 1", (post(b"Content-Length: 18446744073709551615"),), "401 or 413 or 400"),
    ("a length of 2**63, with a key", (post(KEY, b"Content-Length: 9223372036854775808"),), "413 or 400"),
    ("a length of 10,000 digits", (post(b"Content-Length: " + b"9" * 10_000),), BAD),
    ("an unknown coding", (post(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n" + HIDDEN,), CUT),
    ("identity", (post(b"Transfer-Encoding: identity") + HIDDEN,), CUT),
    ("chunked, then another coding", (post(b"Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n" + HIDDEN,), BAD),
    ("chunked twice", (post(CHUNKED, CHUNKED) + b"0\r\n\r\n",), "400 or 401"),
    ("a space before the colon of chunked", (post(b"Transfer-Encoding : chunked") + b"0\r\n\r\n" + HIDDEN,), BAD),
    ("a vertical tab before chunked", (post(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n" + HIDDEN,), BAD),
    ("chunked in HTTP/1.0", (post(CHUNKED, version=b"1.0") + b"0\r\n\r\n" + HIDDEN,), "400 or 401"),
    ("a chunk size with 0x", (post(CHUNKED) + b"0x2\r\n{}\r\n0\r\n\r\n",), CUT),
    ("a negative chunk size", (post(CHUNKED) + b"-1\r\n{}\r\n0\r\n\r\n",), CUT),
    ("a chunk size of 2**64", (post(CHUNKED) + b"10000000000000000\r\n",), CUT),
    ("a chunk size of 10,000 digits", (post(CHUNKED) + b"0" * 10_000 + b"2\r\n{}\r\n0\r\n\r\n",), CUT),
    ("an empty chunk size", (post(CHUNKED) + b"\r\n{}\r\n0\r\n\r\n",), CUT),
    ("a chunk longer than its size", (post(CHUNKED) + b"1\r\n{}\r\n0\r\n\r\n",), CUT),
    ("chunks with line feeds alone", (post(CHUNKED) + b"2\n{}\n0\n\n" + HIDDEN,), CUT),
    ("a line feed in the extension of a chunk", (post(CHUNKED) + b"2;a\nb\r\n{}\r\n0\r\n\r\n",), CUT),
    ("a carriage return in the extension", (post(CHUNKED) + b"2;a\rb\r\n{}\r\n0\r\n\r\n",), CUT),
    ("endless extension of a chunk", (post(CHUNKED) + b"2;", Endless(BLOCK)), "401 or 401 400 or 400 or 413 or closed"),
    ("endless extension, with a key", (post(KEY, CHUNKED) + b"2;", Endless(BLOCK)), "413 or 400 or 431 or closed"),
    ("a request in the body of a GET", (head(b"Content-Length: %d" % len(HIDDEN)) + HIDDEN,), NO_KEY),
    ("a request in the body of a POST", (post(b"Content-Length: %d" % len(HIDDEN)) + HIDDEN,), NO_KEY),
    ("a request in a chunk", (post(CHUNKED) + b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n",), NO_KEY),
]  # fmt: skip
REQUESTS: Table = [
    ("HTTP/0.9", (b"GET /health\r\n",), "400 or closed"),
    ("HTTP/1.0 without a host", (b"GET /v1/models HTTP/1.0\r\n\r\n",), NO_KEY),
    ("HTTP/1.2", (head(line=b"GET / HTTP/1.2"),), BAD),
    ("HTTP/3.0", (head(line=b"GET / HTTP/3.0"),), BAD),
    ("HTTP/1.10", (head(line=b"GET / HTTP/1.10"),), BAD),
    ("the preface of HTTP/2", (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),), "400 or closed"),
    ("an upgrade to HTTP/2", (head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),), NO_KEY),
    ("CONNECT", (head(line=b"CONNECT 127.0.0.1:22 HTTP/1.1"),), "400 or 401"),
    ("CONNECT after a request, with a key", (head(KEY), Action.AWAIT_ANSWER, head(KEY, line=b"CONNECT 127.0.0.1:22 HTTP/1.1")), "200 400 or 200 405"),
    ("HEAD", (head(line=b"HEAD /v1/models HTTP/1.1"),), NO_KEY),
    ("TRACE", (head(line=b"TRACE /v1/models HTTP/1.1"),), NO_KEY),
    ("OPTIONS *", (head(line=b"OPTIONS * HTTP/1.1"),), "400 or 401"),
    ("DELETE /health", (head(line=b"DELETE /health HTTP/1.1"),), "405"),
    ("an unknown method", (head(line=b"EXPLODE / HTTP/1.1"),), BAD),
    ("a method in small letters", (head(line=b"get / HTTP/1.1"),), BAD),
    ("a method of 1,000 letters", (head(line=b"G" * 1000 + b" / HTTP/1.1"),), BAD),
    ("RTSP", (b"DESCRIBE rtsp://localhost/v1/models RTSP/1.0\r\n\r\n",), "400 or 401"),
    ("an absolute URI of another host", (head(line=b"GET http://192.0.2.1/v1/models HTTP/1.1"),), NO_KEY),
    ("a URI with a user", (head(line=b"GET http://a:b@localhost/v1/models HTTP/1.1"),), NO_KEY),
    ("a URI with another scheme", (head(line=b"GET file:///etc/passwd HTTP/1.1"),), "400 or 401"),
    ("a URI with a bad port", (head(line=b"GET http://localhost:999999/ HTTP/1.1"),), "400 or 401"),
    ("a path above the root", (head(line=b"GET /../../etc/passwd HTTP/1.1"),), NO_KEY),
    ("a path from /health up", (head(line=b"GET /health/../v1/models HTTP/1.1"),), NO_KEY),
    ("an encoded path from /health up", (head(line=b"GET /health%2f..%2fv1%2fmodels HTTP/1.1"),), NO_KEY),
    ("NUL behind /health", (head(line=b"GET /health%00/v1/models HTTP/1.1"),), NO_KEY),
    ("two slashes", (head(line=b"GET //v1/models HTTP/1.1"),), NO_KEY),
    ("a fragment", (head(line=b"GET /v1/models#/health HTTP/1.1"),), "400 or 401"),
    ("NUL in the path", (head(line=b"GET /\0 HTTP/1.1"),), BAD),
    ("escape sequence in the path", (head(line=b"GET /\x1b[31m HTTP/1.1"),), BAD),
    ("encoded escape sequence in the path", (head(line=b"GET /%1b[31m%0d%0aX HTTP/1.1"),), NO_KEY),
    ("invalid UTF-8 in the path", (head(line=b"GET /\xff\xfe HTTP/1.1"),), "400 or 401"),
    ("encoded invalid UTF-8 in the path", (head(line=b"GET /%ff%fe HTTP/1.1"),), NO_KEY),
    ("a path of 20,000 directories", (head(line=b"GET " + b"/a" * 20_000 + b" HTTP/1.1"),), NO_KEY),
    ("20,000 values in the query", (head(line=b"GET /health?" + b"a&" * 20_000 + b" HTTP/1.1"),), "200"),
    ("no path", (b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",), BAD),
    ("a tab in the request line", (head(line=b"GET\t/\tHTTP/1.1"),), BAD),
    ("no host", (head(host=False),), "400 or 401"),
    ("two hosts", (head(b"Host: other"),), "400 or 401"),
    ("a host with control characters", (head(b"Host: \x1b]0;x\x07", host=False),), "400 or 401"),
    ("an answer instead of a request", (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), "400 or closed"),
    ("SSH", (b"SSH-2.0-OpenSSH_9.2\r\n",), "400 or closed"),
    ("SMTP", (b"EHLO localhost\r\n",), "400 or closed"),
    ("Redis", (b"*1\r\n$4\r\nPING\r\n",), "400 or closed"),
    ("PROXY, version 1", (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + REQUEST,), "400 or closed"),
    ("PROXY, version 2", (b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c" + bytes(12) + REQUEST,), "400 or closed"),
    ("a TLS handshake on a plain port", (HELLO,), "400 or closed"),
    ("64 KiB of noise", (NOISE,), "400 or closed"),
    ("endless noise", (Endless(NOISE),), "400 or closed"),
    ("endless NUL", (Endless(bytes(65536)),), "400 or closed"),
    ("an unknown expectation", (post(b"Expect: a miracle", b"Content-Length: 2") + b"{}",), "401 or 417"),
    ("the user's address forged", (head(b"X-Forwarded-For: 127.0.0.1", b"Forwarded: for=127.0.0.1"),), NO_KEY),
]  # fmt: skip
EARLY: dict[int, Table] = {  # by the number of connections
    20: [
        ("closed after one byte", (b"G", Action.CLOSE)),
        ("closed in the head", (HALF, Action.CLOSE)),
        ("reset in the head", (HALF, Action.RESET)),
        ("closed before the answer", (REQUEST, Action.CLOSE)),
        ("reset before the answer", (REQUEST, Action.RESET)),
        ("closed before the body", (post(b"Content-Length: 100"), Action.CLOSE)),
        ("closed in the body, with a key", (post(KEY, b"Content-Length: 100") + b"{", Pause(0.1), Action.CLOSE)),
        ("reset in the body, with a key", (post(KEY, b"Content-Length: 100") + b"{", Pause(0.1), Action.RESET)),
        ("closed in a chunk, with a key", (post(KEY, CHUNKED) + b"64\r\n{", Pause(0.1), Action.CLOSE)),
        ("closed between two requests", (GET_HEALTH, Action.AWAIT_ANSWER, Action.CLOSE)),
        ("closed with answers to come", (GET_HEALTH * 50, Action.CLOSE)),
    ],
    # Clients share the model's speed.
    2: [
        ("closed while the model works", (keyed(SHORT_STREAM), Action.CLOSE)),
        ("reset while the model works", (keyed(SHORT_STREAM), Action.RESET)),
        ("closed in a stream", (keyed(SHORT_STREAM), Action.AWAIT_ANSWER, Action.CLOSE)),
        ("reset in a stream", (keyed(SHORT_STREAM), Action.AWAIT_ANSWER, Action.RESET)),
    ],
}  # fmt: skip
WEBSOCKETS: Table = [
    ("an upgrade without a key", (head(*UPGRADE, NONCE, line=REALTIME),), "401 or 403"),
    ("an upgrade, then half a head", (head(*UPGRADE, NONCE, line=REALTIME) + HALF,), "401 or 403"),
    ("half an upgrade", (head(*UPGRADE, line=REALTIME),), "400 or 401 or 403"),
    ("half an upgrade, with a key", (head(*UPGRADE, KEY, line=REALTIME),), "400 or 403"),
    ("an incomplete upgrade", (head(*UPGRADE, NONCE, line=REALTIME)[:-2],), TOO_SLOW),
    ("an upgrade with a bad nonce", (head(*UPGRADE, b"Sec-WebSocket-Key: x", line=REALTIME),), "400 or 401 or 403"),
    ("an upgrade with a nonce of 60 KB", (head(*UPGRADE, b"Sec-WebSocket-Key: " + BLOCK[:60_000], line=REALTIME),), "400 or 401 or 403 or closed"),
    ("an upgrade to version 7", (head(*UPGRADE[:2], b"Sec-WebSocket-Version: 7", NONCE, line=REALTIME),), "400 or 401 or 403 or 426"),
    ("an upgrade of a POST", (post(*UPGRADE, NONCE, path=b"/v1/realtime"),), "400 or 401 or 403 or 405"),
    ("an upgrade in HTTP/1.0", (head(*UPGRADE, NONCE, line=b"GET /v1/realtime HTTP/1.0"),), "400 or 401 or 403"),
    ("an upgrade with a body", (head(*UPGRADE, NONCE, b"Content-Length: 5000000000", line=REALTIME), Endless(BLOCK)), "400 or 401 or 403 or 413 or closed"),
    ("an upgrade of /health", (head(*UPGRADE, NONCE, line=b"GET /health HTTP/1.1"),), "400 or 401 or 403"),
    ("half an upgrade of /health", (head(*UPGRADE, line=b"GET /health HTTP/1.1"),), "400 or 401 or 403"),
    ("an upgrade of a page, with a key", (head(*UPGRADE, NONCE, KEY),), "400 or 403 or 404"),
    ("endless frames before the answer", (head(*UPGRADE, NONCE, line=REALTIME), Endless(frame(0x82, b"x" * 125) * 500)), "401 or 403 or closed"),
    ("a frame of 2**63 bytes", (head(*UPGRADE, NONCE, KEY, line=REALTIME) + frame(0x82, b"", length=b"\xff" + b"\x7f" + b"\xff" * 7),), "403 or 404 or closed"),
    ("a frame without a mask", (head(*UPGRADE, NONCE, KEY, line=REALTIME) + frame(0x81, b"{}", masked=False),), "403 or 404 or closed"),
    ("endless fragments", (head(*UPGRADE, NONCE, KEY, line=REALTIME), Endless(frame(0x00, b"x" * 125) * 500)), "403 or 404 or closed"),
    ("endless pings", (head(*UPGRADE, NONCE, KEY, line=REALTIME), Endless(frame(0x89, b"x" * 125) * 500)), "403 or 404 or closed"),
    ("reserved bits", (head(*UPGRADE, NONCE, KEY, line=REALTIME) + frame(0xF1, b"{}"),), "403 or 404 or closed"),
]  # fmt: skip
BODIES: Table = [
    ("5 GB announced", (post(b"Content-Length: %d" % FIVE_GB),), "401 or 413"),
    ("5 GB", (post(b"Content-Length: %d" % FIVE_GB), Repeated(BLOCK, FIVE_GB // len(BLOCK))), "401 or 413 or closed"),
    ("5 GB in chunks", (post(CHUNKED), Repeated(CHUNK, FIVE_GB // len(BLOCK))), "401 or 413 or closed"),
    ("no body", (post(b"Content-Length: 100"),), "401 or 408"),
    ("a body byte by byte", (post(b"Content-Length: 100"), Slowly(b"x")), "401 or 408"),
    ("a body asked to wait", (post(b"Expect: 100-continue", b"Content-Length: 100"),), "401"),
    ("endless chunks of one byte", (post(CHUNKED), Endless(b"1\r\nx\r\n" * 1000)), "401 or 413 or closed"),
    ("5 GB for /health", (post(b"Content-Length: %d" % FIVE_GB, path=b"/health"), Endless(BLOCK)), "401 or 405 or 413 or closed"),
    ("5 GB with a GET", (head(b"Content-Length: %d" % FIVE_GB), Endless(BLOCK)), "401 or 413 or closed"),
]  # fmt: skip
BODIES_WITH_KEY: Table = [
    ("5 GB announced", (post(KEY, b"Content-Length: %d" % FIVE_GB),), TOO_LARGE),
    ("5 GB", (post(KEY, b"Content-Length: %d" % FIVE_GB), Repeated(BLOCK, FIVE_GB // len(BLOCK))), "413 or closed"),
    ("5 GB, asked to wait", (post(KEY, b"Expect: 100-continue", b"Content-Length: %d" % FIVE_GB),), TOO_LARGE),
    ("64 MiB and a byte announced", (post(KEY, b"Content-Length: %d" % (2**26 + 1)),), TOO_LARGE),
    ("5 GB in chunks", (post(KEY, CHUNKED), Repeated(CHUNK, FIVE_GB // len(BLOCK))), "413 or closed"),
    ("endless chunks of 16 bytes", (post(KEY, CHUNKED), Endless(b"10\r\n0123456789abcdef\r\n" * 1000)), "413 or closed", BODY_SEC),
    ("5 GB for /tokenize", (post(KEY, b"Content-Length: %d" % FIVE_GB, path=b"/tokenize"), Endless(BLOCK)), "413 or closed"),
    ("5 GB for /nothing", (post(KEY, b"Content-Length: %d" % FIVE_GB, path=b"/nothing"), Endless(BLOCK)), "404 or 413 or closed"),
    ("5 GB with a GET", (head(KEY, b"Content-Length: %d" % FIVE_GB), Endless(BLOCK)), "200 or 413 or closed"),
    ("no body", (post(KEY, b"Content-Length: 100"),), TOO_SLOW, BODY_SEC),
    ("half a body", (post(KEY, b"Content-Length: 100") + b"{",), TOO_SLOW, BODY_SEC),
    ("half a chunk", (post(KEY, CHUNKED) + b"64\r\n{",), TOO_SLOW, BODY_SEC),
    ("a body byte by byte", (post(KEY, b"Content-Length: 1000"), Slowly(b"x")), TOO_SLOW, BODY_SEC),
    ("a chunk of one byte every second", (post(KEY, CHUNKED), *(b"1\r\nx\r\n", Pause(1)) * 90), TOO_SLOW, BODY_SEC),
    ("half a body, half closed", (post(KEY, b"Content-Length: 100") + b"{", Action.HALF_CLOSE), "400 or 408 or closed", BODY_SEC),
    ("a body that expands a thousandfold", (keyed(BOMB, b"Content-Encoding: gzip"),), "400 or 415 or 422"),
    ("an unknown encoding", (keyed(b"{}", b"Content-Encoding: br"),), "400 or 415 or 422"),
    ("no JSON", (keyed(NOISE),), "400 or 422"),
    ("NUL instead of JSON", (keyed(bytes(1000)),), "400 or 422"),
    ("invalid UTF-8 in JSON", (keyed(b'{"prompt": "\xff\xfe"}'),), "400 or 422"),
    ("a lone surrogate", (keyed(completion(prompt="\ud800")),), "400 or 422"),
    ("a million open brackets", (keyed(b"[" * 10**6),), "400 or 422"),
    ("a million nested objects", (keyed(b'{"a":' * 10**6),), "400 or 422"),
    ("900 levels of JSON", (keyed(b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}"),), "400 or 422"),
    ("a number of 10,000 digits", (keyed(b'{"prompt": "x", "max_tokens": ' + b"9" * 10_000 + b"}"),), "400 or 422"),
    ("an exponent of 400,000", (keyed(b'{"prompt": "x", "temperature": 1e400000}'),), "400 or 422"),
    ("NaN", (keyed(b'{"prompt": "x", "temperature": NaN}'),), "400 or 422"),
    ("a prompt of a megabyte", (keyed(completion(prompt="x" * 10**6)),), "400 or 413 or 422"),
    ("a prompt of 2 MB, truncated", (keyed(completion(prompt="a b " * 500_000, truncate_prompt_tokens=1)),), "400 or 413 or 422"),
    ("2 MB of text for /tokenize", (keyed(json.dumps({"prompt": "a b " * 500_000}).encode(), path=b"/tokenize"),), "400 or 413"),
    ("10,000 prompts", (keyed(completion(prompt=[""] * 10_000)),), "400 or 413 or 422"),
    ("a negative number of tokens", (keyed(completion(max_tokens=-1)),), "400 or 422"),
    ("a billion answers", (keyed(completion(n=10**9)),), "400 or 422"),
    ("a token that does not exist", (keyed(completion(prompt=[2**62])),), "400 or 422"),
    ("10,000 equal keys", (keyed(b"{" + b'"prompt": "x", ' * 10_000 + b'"max_tokens": -1}'),), "400 or 422"),
    ("a form without an end", (post(KEY, CHUNKED, b"Content-Type: multipart/form-data; boundary=x", path=b"/v1/audio/transcriptions") + b"2\r\n--\r\n0\r\n\r\n",), "400 or 404 or 422"),
]  # fmt: skip
HELD_BODIES: Table = [
    ("100 bodies of 63 MB of 64", (post(KEY, b"Content-Length: %d" % 2**26), Repeated(BLOCK, 63 * 16)), "503 or 408 or closed", 2 * BODY_SEC, 100),
]  # fmt: skip
PIPELINES: Table = [
    ("100 requests at once", (REQUEST * 100,), NO_KEY),
    ("10,000 requests at once", (REQUEST * 10_000,), "401 or 431 or 400 or closed"),
    ("endless requests", (Endless(REQUEST * 1000),), "401 or 401 400 or 401 431 or closed"),
    ("endless probes", (Endless(GET_HEALTH * 1000),), "200 or 200 400 or 200 431 or closed"),
    ("a request, then noise", (REQUEST + NOISE,), "401 400 or 401"),
    ("200 requests with a key", (head(KEY) * 200,), "200 or closed"),
    ("with a key, then without", (head(KEY) + REQUEST,), "200 401 or closed"),
    ("without a key, then with", (REQUEST + head(KEY),), "401 or 401 200"),
    ("two requests, one Connection: close", (head(b"Connection: close") + HIDDEN,), NO_KEY),
    ("a completion, then a body of 5 GB", (keyed(completion()) + post(b"Content-Length: %d" % FIVE_GB), Endless(BLOCK)), "200 401 or 200 413 or 200 or closed"),
    ("a stream with a key, then an upgrade", (keyed(LONG_STREAM) + head(*UPGRADE, NONCE, KEY, line=REALTIME),), "200 or closed"),
]  # fmt: skip
READERS: Table = [
    ("a long stream", (keyed(LONG_STREAM), Action.STOP_READING), "closed"),
    ("a long stream, after its first token", (keyed(LONG_STREAM), Action.AWAIT_ANSWER, Action.STOP_READING), "200"),
    ("3,000 pages of metrics", (Action.STOP_READING, Repeated(head(KEY, line=b"GET /metrics HTTP/1.1"), 3000)), "closed"),
    ("3,000 descriptions of the API", (Action.STOP_READING, Repeated(head(KEY, line=b"GET /openapi.json HTTP/1.1"), 3000)), "closed"),
    ("endless probes", (Action.STOP_READING, Endless(GET_HEALTH * 10)), "closed"),
    ("endless requests without a key", (Action.STOP_READING, Endless(REQUEST * 10)), "closed"),
]  # fmt: skip
TLS: Table = [
    ("plain HTTP", (REQUEST,), "400 or closed"),
    ("nothing", (), "closed"),
    ("one byte", (b"\x16",), "closed"),
    ("noise", (NOISE,), "closed"),
    ("endless noise", (Endless(NOISE),), "closed"),
    ("half a handshake", (HELLO[:100],), "closed"),
    ("a handshake, then nothing", (HELLO,), "closed"),
    ("a handshake byte by byte", (Slowly(HELLO),), "closed"),
    ("a handshake, half closed", (HELLO, Action.HALF_CLOSE), "closed"),
    ("a handshake, then closed", (HELLO, Action.CLOSE), LEFT),
    ("a handshake, then reset", (HELLO, Action.AWAIT_ANSWER, Action.RESET), LEFT),
    ("a handshake twice", (HELLO + HELLO,), "closed"),
    ("a handshake, then noise", (HELLO, Action.AWAIT_ANSWER, NOISE), "closed"),
    ("a handshake in records of one byte", (b"".join(record(22, bytes([byte])) for byte in HELLO[5:]),), "closed"),
    ("SSL 2", (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37),), "closed"),
    ("SSL 3", (OLD_HELLO.replace(b"\3\3", b"\3\0", 1),), "closed"),
    ("TLS 1.0", (OLD_HELLO.replace(b"\3\3", b"\3\1", 1),), "closed"),
    ("a record of 65,535 bytes", (record(22, BLOCK[:-1]),), "closed"),
    ("a handshake of 16 MB announced", (record(22, b"\1\xff\xff\xff" + BLOCK[:16_000]), Endless(record(22, BLOCK[:16_000]))), "closed"),
    ("endless empty records", (Endless(record(22, b"") * 1000),), "closed"),
    ("endless alerts", (Endless(record(21, b"\1\x5a") * 1000),), "closed"),
    ("data before the handshake", (record(23, BLOCK[:1000]),), "closed"),
    ("1,000 handshakes that do not end", (HELLO,), "closed", HEAD_SEC, 1000),
    ("1,000 half handshakes", (HELLO[:100],), "closed", HEAD_SEC, 1000),
    ("an oversized heartbeat", (HELLO, Action.AWAIT_ANSWER, record(24, b"\1\x40\0")), "closed"),
]  # fmt: skip
BELOW_TLS: Table = [
    ("then nothing", (), TOO_SLOW),
    ("then noise below TLS", (NOISE,), "closed"),
    ("then plain HTTP below TLS", (REQUEST,), "closed"),
    ("then a new handshake in the clear", (HELLO,), "closed"),
    ("then half a record", (record(23, BLOCK[:1000])[:500],), TOO_SLOW),
    ("then an endless empty record", (Endless(record(23, b"") * 1000),), "closed"),
    ("then endless warnings", (Endless(record(21, b"\1\x5a") * 1000),), "closed"),
    ("then an end without a goodbye", (Action.HALF_CLOSE,), "closed"),
]  # fmt: skip


def rows(group: str, table: Table, layer: Layer = Layer.HTTP) -> list[Hostile]:
    return [Hostile(group, *row)._replace(layer=layer) for row in table]


def _rows() -> list[Hostile]:
    early = [(name, sends, LEFT, AT_ONCE_SEC, times) for times, table in EARLY.items() for name, sends in table]
    readers = [(*row, CLIENT_TIMEOUT_SEC) for row in READERS]
    handshakes = [(f"a complete handshake, {name}", *rest) for name, *rest in BELOW_TLS]
    return [
        *rows("oversized or malformed heads", HEADS),
        *rows("heads that do not end", UNFINISHED),
        *rows("floods", FLOODS),
        *rows("lengths and chunks", LENGTHS),
        *rows("methods, paths, protocols", REQUESTS),
        *rows("closed early", early),
        *rows("WebSockets", WEBSOCKETS),
        *rows("bodies without a key", BODIES),
        *rows("bodies with a key", BODIES_WITH_KEY),
        *rows("bodies that are held", HELD_BODIES),
        *rows("pipelines", PIPELINES),
        *rows("readers that stop", readers),
        *rows("TLS", TLS, Layer.INSTEAD_OF_TLS),
        *rows("TLS", handshakes, Layer.BELOW_TLS),
    ]


ROWS = _rows()
