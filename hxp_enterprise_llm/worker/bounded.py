"""uvicorn's protocols with limits on what a client may send before its request costs more than a connection.

uvicorn limits neither the size of a request's head nor the time in which a request arrives. Here the limits hold while
bytes arrive: what exceeds them is not parsed. The key is checked at the end of the head, so no body without a key is
parsed, and no application code runs for it.
"""

import asyncio
import json
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from hxp_enterprise_llm.settings.keys import MEBIBYTE
from hxp_enterprise_llm.worker.connections import CONNECTION, Connection
from hxp_enterprise_llm.worker.traffic import OPEN_PATH, UNAUTHORIZED, Traffic

HEAD_BYTES, HEAD_FIELDS, HEAD_SEC = 64 * 1024, 100, 10.0
"""Limits of a request's head. The bytes are also those that may come without a byte of the body: framing, trailers."""
BODY_WINDOW_SEC, BODY_WINDOW_BYTES = 20.0, 10_000
"""A body must bring this many bytes in each window until it is complete. Apache's default minimum is 500 bytes a second
too."""
BODIES, BODIES_LEAST = 4, 64 * MEBIBYTE
"""A server holds bodies of so many times MAX_REQUEST_MB, or of so many bytes if that is more."""
SMALL_BODY = 64 * 1024
"""A body of this size is always accepted, so that clients with large bodies do not keep others out."""
PIPELINED = 16
"""How many requests may wait on a connection while the one before them is being answered."""
PIECE_BYTES = 16 * 1024
"""Bytes that are parsed at once. A head behind another request can exceed its limit by less than this."""
LINGER_SEC, LINGER_BYTES = 2.0, MEBIBYTE
"""How long a refused client stays connected, and how much of what it still sends is read and ignored. If its connection
closed at once, the client might lose the answer."""
WEBSOCKET_MESSAGE_BYTES = 16 * MEBIBYTE
"""uvicorn's own limit of a WebSocket's message; MAX_REQUEST_MB may lower it."""


class Part(Enum):
    """The part of a request that a connection waits for."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class Refused(Exception):
    """Ends the parsing of a request that has been refused."""


def error_body(message: str, code: str, kind: str = "invalid_request_error") -> bytes:
    """An error as in the OpenAI API, which its clients turn into an exception."""
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


class BoundedHttp(HttpToolsProtocol):
    """A connection that speaks HTTP."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        connection = app_state.get(CONNECTION)
        if not connection:
            # uvicorn has accepted it on the private port, to which every process of the host can connect.
            connection = Connection(Traffic.private)
            app_state = {**app_state, CONNECTION: connection}
        super().__init__(config, server_state, app_state, _loop)
        self._connection: Connection = connection
        self._part, self._timer_is_due = Part.NOTHING, False
        self._timer: asyncio.TimerHandle | None = None
        # Bytes since the head began, or since the last byte of the body; fields; bytes of the body, now and at the
        # begin of the window.
        self._bytes_without_body = self._fields = self._body = self._body_before = 0
        # The request was refused, and what follows is ignored; it is a WebSocket's, which has another protocol now.
        self._ending = self._upgraded = False
        self._ignored = 0
        # uvicorn's `cycle` is the last request that has arrived; this is the request that is being answered.
        self._answering: RequestResponseCycle | None = None
        # Bytes of the bodies of requests that the application has not finished.
        self._held: dict[RequestResponseCycle, int] = {}

    @property
    def idle(self) -> bool:
        """Whether the connection waits for its client: no request that has arrived completely is being answered.

        What uvicorn has written may still wait for the client to read it, then `response_complete` tells nothing.
        """
        last = self.cycle
        if self.pipeline or self.flow.write_paused or self.transport.get_write_buffer_size():
            return False
        return last is None or last.response_complete or last.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, for a limited time."""
        super().connection_made(transport)
        self._connection.protocol = self
        self._connection.others.add(self._connection)
        self._enter(Part.HEAD)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and tell the application of the request that is being answered."""
        self._stop_timer()
        if self._answering and not self._answering.response_complete:
            # uvicorn tells the last request only. Another would be answered into a transport that has ended, and
            # the error logged.
            self._answering.disconnected = True
            self._answering.message_event.set()
        self._connection.others.remove(self._connection)
        for cycle, _ in self.pipeline:
            # The application never gets these.
            self._release(cycle)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, as far as the limits allow."""
        self._unset_keepalive_if_required()
        if self._ending:
            self._ignored += len(data)
            if self._ignored >= LINGER_BYTES:
                self.transport.pause_reading()
            return
        rest = memoryview(data)
        while rest and not (self._ending or self._upgraded or self.transport.is_closing()):
            if self._part is Part.NOTHING:
                self._enter(Part.HEAD)
            size = min(PIECE_BYTES, HEAD_BYTES - self._bytes_without_body)
            piece, rest = rest[:size], rest[size:]
            self._bytes_without_body += len(piece)
            self._parse(piece)
            if self._bytes_without_body >= HEAD_BYTES:
                self._refuse(431, f"the head of a request may have {HEAD_BYTES >> 10} KiB", "head_too_large")
        if self._timer_is_due and not (self._ending or self._upgraded):
            self._set_timer()

    def _parse(self, piece: memoryview) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            # The application answers a request for any other protocol in HTTP.
            if self._should_upgrade():
                if not self.idle:
                    # The protocol of the WebSocket would not tell the request before it that its client has left.
                    self._end()
                    return
                self._upgraded = True
                self._stop_timer()
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            # uvicorn would log this, so that a client without a key could fill the log.
            self._refuse(400, "this is not a valid HTTP request", "invalid_request")

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._part is not Part.HEAD:
            # It follows another request in the same piece.
            self._enter(Part.HEAD)
        if len(self.pipeline) >= PIPELINED:
            self._end()
            raise Refused
        self._fields = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a field of the head or of the trailer."""
        self._fields += 1
        if self._fields > HEAD_FIELDS:
            self._refuse(431, f"the head of a request may have {HEAD_FIELDS} fields", "head_too_large")
            raise Refused
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass the request to the application, unless its head is enough to refuse it."""
        path, method = self.url.partition(b"?")[0].decode("latin-1"), self.parser.get_method().decode("latin-1")
        length = int(next((value for name, value in self.headers if name == b"content-length"), 0))
        upgrade = self.parser.should_upgrade() and self._should_upgrade()
        if length or upgrade or any(name == b"transfer-encoding" for name, _ in self.headers):
            # A probe has no body and opens no WebSocket. So no body without a key is parsed, and no WebSocket logged.
            path = ""
        if not Traffic.is_allowed({"path": path, "method": method, "headers": self.headers}):
            self._answer(401, UNAUTHORIZED, (b"www-authenticate", b"Bearer"))
            raise Refused
        if path != OPEN_PATH and not self._connection.others.admit(self._connection):
            text = "clients have all connections of this server in use (MAX_CONNECTIONS); try again later"
            self._answer(503, error_body(text, "too_many_connections", "server_error"), (b"retry-after", b"1"))
            raise Refused
        if length > Traffic.limits.request_bytes:
            self._refuse_body()
        # Fails for a CONNECT, whose target is no path; then the part is still the head.
        super().on_headers_complete()
        self._enter(Part.BODY)
        self._body = self._body_before = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        async def releasing(*arguments: Any) -> None:
            try:
                await app(*arguments)
            finally:
                self._release(cycle)

        self._answering = cycle
        super()._start_asgi_task(cycle, releasing)

    def on_body(self, body: bytes) -> None:
        """Count a part of the body."""
        self._bytes_without_body = 0
        self._body += len(body)
        if self._body > Traffic.limits.request_bytes:
            self._refuse_body()
        if self.cycle and not self.cycle.response_complete:
            # uvicorn ignores what comes after the answer.
            self._hold(self.cycle, len(body))
        super().on_body(body)

    def _hold(self, cycle: RequestResponseCycle, size: int) -> None:
        """Count a part of a body, from its arrival until the application has finished the request."""
        most = max(BODIES * Traffic.limits.request_bytes, BODIES_LEAST)
        if self._body > SMALL_BODY and Traffic.body_bytes + size > most:
            text = "requests with large bodies use all the memory for them (MAX_REQUEST_MB); try again later"
            self._answer(503, error_body(text, "too_many_bodies", "server_error"), (b"retry-after", b"1"))
            raise Refused
        self._held[cycle] = self._held.get(cycle, 0) + size
        Traffic.body_bytes += size

    def _release(self, cycle: RequestResponseCycle) -> None:
        Traffic.body_bytes -= self._held.pop(cycle, 0)

    def on_message_complete(self) -> None:
        """End the request; its answer may take any time."""
        self._enter(Part.NOTHING)
        super().on_message_complete()

    def _enter(self, part: Part) -> None:
        self._part, self._timer_is_due, self._bytes_without_body = part, True, 0

    def _set_timer(self) -> None:
        """Limit the time of the part that has begun. Most requests arrive at once and need no timer."""
        self._stop_timer()
        self._timer_is_due = False
        if self._part is Part.HEAD:
            self._timer = self.loop.call_later(HEAD_SEC, self._head_timed_out)
        elif self._part is Part.BODY:
            self._timer = self.loop.call_later(BODY_WINDOW_SEC, self._body_timed_out)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _head_timed_out(self) -> None:
        if not self.idle:
            # Some clients send an empty line after a body: that must not end the answer.
            self._set_timer()
        else:
            self._end()

    def _body_timed_out(self) -> None:
        if self._body - self._body_before < BODY_WINDOW_BYTES and not self.flow.read_paused:
            self._end()
        else:
            self._body_before = self._body
            self._set_timer()

    def _refuse_body(self) -> None:
        limit = Traffic.limits.request_bytes / MEBIBYTE
        self._refuse(413, f"the body of a request may have {limit:g} MB (MAX_REQUEST_MB)", "request_too_large")
        raise Refused

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._answer(status, error_body(message, code))

    def _answer(self, status: int, body: bytes, *fields: tuple[bytes, bytes]) -> None:
        """Answer the request in place of the application, and close the connection once the client can have read it."""
        if self._ending:
            return
        # The answer to another request, or the application's to this one, may have begun.
        if self._part is Part.BODY and self.cycle:
            began = self.cycle.response_started
        else:
            began = self.cycle is not None and not self.cycle.response_complete
        if self.pipeline or began:
            self._end()
            return
        fields = (
            *self.server_state.default_headers,
            *fields,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        )
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        if self.parser.get_method() == b"HEAD":
            body = b""
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self._end(LINGER_SEC)

    def _end(self, linger_sec: float = 0) -> None:
        """Close the connection and end its requests; ignore what the client still sends in the next seconds, if any."""
        self._ending = True
        self._stop_timer()
        if not linger_sec:
            self.transport.abort()
            return
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(linger_sec, self.transport.abort)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A connection that speaks the protocol of WebSockets, after a request with a valid key; it may last for hours."""

    idle = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the connection."""
        super().connection_made(transport)
        self.app_state[CONNECTION].protocol = self

    def data_received(self, data: bytes) -> None:
        """Close the connection if the request is malformed: uvicorn, which passes it in one piece, would keep it."""
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.abort()

    def handle_parser_exception(self) -> None:
        """Close the connection; uvicorn's method fails if the WebSocket is not open yet."""
        if self.conn.close_sent is None:
            self.transport.abort()
        else:
            super().handle_parser_exception()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no longer."""
        connection = self.app_state[CONNECTION]
        connection.others.remove(connection)
        super().connection_lost(exc)
