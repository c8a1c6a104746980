"""Make the connections of `hostile_clients` to a server, while a client with a key measures how it is served.

    hostile_run.py HOST PORT --key-file FILE --model MODEL [--tls] [--pid PID] [--group GROUP]... [--json FILE]

Prints a table and the connections that did not end as expected; then the exit status is 1. `--pid` names the server's
process, whose memory and descriptors are measured. Standard library only.
"""

import argparse
import asyncio
import dataclasses
import functools
import http.client
import json
import multiprocessing
import os
import re
import resource
import socket
import ssl
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from hostile_clients import LEFT, ROWS, Action, Endless, Hostile, Layer, Pause, Repeated, Slowly, Step

SLACK_SEC = 20.0
"""A busy machine may close connections this much later than promised."""
LATE_SEC = 5.0
"""The median of a row's connections may be this much later."""
WINDOW_SEC = 5.0
"""Shortest duration of a group; connections that end sooner are made again."""
SAMPLES = 15
"""Fewest requests of the client with a key from which a median is computed."""
STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d) ")
LONGEST_STATUS_LINE = 13
HELD = {"01", "08"}
"""States in /proc/net/tcp of a connection that this end has not closed: ESTABLISHED, CLOSE_WAIT."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The server."""

    host: str
    port: int
    tls: bool
    key: str
    model: str
    pid: int

    def filled(self, data: bytes) -> bytes:
        """Data of a row with the key and the model's name."""
        return data.replace(b"{key}", self.key.encode()).replace(b"{model}", self.model.encode())


@dataclasses.dataclass
class Ending:
    """How one connection ended."""

    outcome: str
    seconds: float


@dataclasses.dataclass
class Group:
    """Measurements of a group of rows."""

    name: str
    connections: int = 0
    endings: dict[str, int] = dataclasses.field(default_factory=dict)
    longest: float = 0.0
    wrong: list[str] = dataclasses.field(default_factory=list)
    memory_mb: float = 0.0
    descriptors: int = 0
    before_ms: float = 0.0
    during_ms: float = 0.0
    slowest_ms: float = 0.0
    refused: list[str] = dataclasses.field(default_factory=list)

    @property
    def factor(self) -> float:
        """The median duration of a request with a key, relative to the median before."""
        return self.during_ms / self.before_ms


@functools.cache
def unverified() -> ssl.SSLContext:
    """A client's context for a server with any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Client:
    """A connection of one row. asyncio's streams hide resets, half closed connections and the bytes below TLS."""

    def __init__(self, target: Target, row: Hostile) -> None:
        self.target, self.row = target, row
        self.loop = asyncio.get_running_loop()
        self.socket = socket.socket(socket.AF_INET6 if ":" in target.host else socket.AF_INET)
        self.socket.setblocking(False)
        if Action.STOP_READING in row.sends:
            # Otherwise the kernel reads megabytes for the client.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls: ssl.SSLObject | None = None
        self.statuses: list[str] = []
        self.answered = asyncio.Event()
        self._tail = b""
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        await self.loop.sock_connect(self.socket, (self.target.host, self.target.port))
        if not self.target.tls or self.row.layer is Layer.INSTEAD_OF_TLS:
            return
        self.tls = unverified().wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                self.incoming.write(await self._received_some())
        await self._flush()
        if self.row.layer is Layer.BELOW_TLS:
            self.tls = None

    async def _received_some(self) -> bytes:
        data = await self.loop.sock_recv(self.socket, 65536)
        if not data:
            raise ConnectionError("closed")
        return data

    async def _flush(self) -> None:
        if data := self.outgoing.read():
            await self.loop.sock_sendall(self.socket, data)

    async def send(self, data: bytes) -> None:
        if self.tls:
            self.tls.write(data)
            await self._flush()
        else:
            await self.loop.sock_sendall(self.socket, data)

    async def read(self) -> None:
        """Collect the statuses of the answers, until the server closes the connection."""
        with suppress(OSError):
            while data := await self._received():
                self.answered.set()
                data = self._tail + data
                for found in STATUS.findall(data):
                    if not self.statuses or self.statuses[-1] != found.decode():
                        self.statuses.append(found.decode())
                # Part of a status line may be here, but no complete one.
                self._tail = STATUS.sub(b"", data)[-LONGEST_STATUS_LINE + 1 :]

    async def _received(self) -> bytes:
        if not self.tls:
            return await self.loop.sock_recv(self.socket, 65536)
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.incoming.write(await self._received_some())
            except ssl.SSLZeroReturnError:
                return b""

    async def play(self) -> Ending:
        """Do what the row says, and wait until the connection ends."""
        begin = time.monotonic()
        left = False
        try:
            async with asyncio.timeout(self.row.within + SLACK_SEC):
                with suppress(OSError):
                    await self.connect()
                    # A thousand connections or handshakes take this client longer than the server.
                    begin = time.monotonic()
                    self._reading = asyncio.create_task(self.read())
                    left = await self._work()
            last = LEFT if left else ""
        except TimeoutError:
            last = "open"
        finally:
            if self._reading:
                self._reading.cancel()
            self.socket.close()
        words = [*self.statuses, *([last] if last else [])]
        return Ending(LEFT if left else " ".join(words) or "closed", time.monotonic() - begin)

    async def _work(self) -> bool:
        """Take the row's steps; return whether the client has ended the connection."""
        assert self._reading
        steps = asyncio.create_task(self._steps(self.row.sends))
        try:
            await asyncio.wait({steps, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            if steps.done() and not steps.cancelled() and steps.exception() is None and steps.result():
                return True
            if Action.STOP_READING in self.row.sends:
                await self._until_dropped()
            else:
                await self._reading
            return False
        finally:
            steps.cancel()
            with suppress(OSError, asyncio.CancelledError):
                await steps

    async def _steps(self, steps: Iterable[Step]) -> bool:
        for step in steps:
            match step:
                case bytes():
                    await self.send(self.target.filled(step))
                case Endless(data):
                    data = self.target.filled(data)
                    while True:
                        await self.send(data)
                case Repeated(data, times):
                    data = self.target.filled(data)
                    for _ in range(times):
                        await self.send(data)
                case Slowly(data):
                    while True:
                        for byte in data:
                            await self.send(bytes([byte]))
                            await asyncio.sleep(1)
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Action() if await self._do(step):
                    return True
        return False

    async def _do(self, action: Action) -> bool:
        """Return whether the connection is over."""
        assert self._reading
        match action:
            case Action.AWAIT_ANSWER:
                await self.answered.wait()
            case Action.STOP_READING:
                self._reading.cancel()
                # The task must be over, or its last read takes what comes next.
                await asyncio.wait({self._reading})
            case Action.HALF_CLOSE:
                self.socket.shutdown(socket.SHUT_WR)
            case Action.RESET:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return action in (Action.CLOSE, Action.RESET)

    async def _until_dropped(self) -> None:
        """Wait until the server has closed a connection from which this client does not read."""
        port = self.socket.getsockname()[1]
        if not server_holds(self.target.port, port):
            # The server is on another host: read on after the time that it has.
            await asyncio.sleep(self.row.within)
            while await self._received():
                pass
        while server_holds(self.target.port, port):
            await asyncio.sleep(0.5)


def server_holds(port: int, client: int) -> bool:
    """Whether a server on this host holds the connection of its `port` to a client's port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                _, local, remote, state, *_ = line.split()
                if (local.endswith(f":{port:04X}") and remote.endswith(f":{client:04X}")) and state in HELD:
                    return True
    return False


class KeyedClient:
    """A process with a key that sends one request after the other, each on a new connection, and probes /health."""

    def __init__(self, target: Target) -> None:
        self._pipe, its = multiprocessing.Pipe(duplex=False)
        self._process = multiprocessing.get_context("fork").Process(
            target=ask_for_ever, args=(target, its), daemon=True
        )
        self._process.start()
        self.took: list[float] = []
        self.refused: list[str] = []

    def collect(self) -> None:
        """Read the new measurements."""
        while self._pipe.poll():
            seconds, problem = self._pipe.recv()
            if problem:
                self.refused.append(problem)
            else:
                self.took.append(seconds)

    def begin(self) -> None:
        """Forget the measurements so far."""
        self.collect()
        self.took, self.refused = [], []

    async def samples(self) -> None:
        """Wait until enough requests are answered, or one fails."""
        while len(self.took) < SAMPLES and not self.refused:
            await asyncio.sleep(0.05)
            self.collect()

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def ask_for_ever(target: Target, pipe: Pipe) -> None:
    """Send the duration of each request, or what went wrong."""

    def ask(method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[float, str]:
        begin = time.monotonic()
        try:
            connection = connect(target.host, target.port, timeout=60)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                answer.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            return 0, f"{method} {path}: {type(error).__name__} {error}"
        problem = "" if answer.status == http.HTTPStatus.OK else f"{method} {path}: {answer.status}"
        return time.monotonic() - begin, problem

    connect: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
    if target.tls:
        connect = functools.partial(http.client.HTTPSConnection, context=unverified())
    body = json.dumps({"model": target.model, "prompt": "License", "max_tokens": 16, "ignore_eos": True}).encode()
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    with suppress(KeyboardInterrupt, BrokenPipeError):
        while True:
            pipe.send(ask("POST", "/v1/completions", body, headers))
            probe, problem = ask("GET", "/health", b"", {})
            if problem:
                pipe.send((probe, problem))


class Process:
    """The server's process; without a PID there are no measurements."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}") if pid else None

    def resident_mb(self, field: str = "VmRSS") -> float:
        if not self._folder:
            return 0.0
        found = re.search(rf"{field}:\s+(\d+) kB", (self._folder / "status").read_text(encoding="utf-8"))
        assert found
        return int(found[1]) * 1024 / 1e6

    def forget_peak(self) -> None:
        """Let VmHWM begin from now (proc_pid_clear_refs(5))."""
        if self._folder:
            (self._folder / "clear_refs").write_text("5", encoding="ascii")

    def descriptors(self) -> int:
        return len(list((self._folder / "fd").iterdir())) if self._folder else 0


async def run(target: Target, name: str, rows: Sequence[Hostile], client: KeyedClient) -> Group:
    """Make all connections of a group at the same time."""
    group, process = Group(name), Process(target.pid)
    client.begin()
    await client.samples()
    if client.refused:
        raise SystemExit(f"the server does not serve a client with a key: {client.refused[0]}")
    group.before_ms = statistics.median(client.took) * 1000
    descriptors, memory = process.descriptors(), process.resident_mb()
    process.forget_peak()
    client.begin()
    begin = time.monotonic()

    async def again(row: Hostile) -> None:
        took: list[float] = []
        while True:
            for ending in await asyncio.gather(*(Client(target, row).play() for _ in range(row.connections))):
                group.connections += 1
                took.append(ending.seconds)
                group.longest = max(group.longest, ending.seconds)
                group.endings[ending.outcome] = group.endings.get(ending.outcome, 0) + 1
                if ending.outcome not in row.expects.split(" or "):
                    said = f"{row.name}: {ending.outcome} instead of {row.expects}"
                    if said not in group.wrong:
                        group.wrong.append(said)
                        print(f"  {ending.seconds:.1f} s {said}", file=sys.stderr, flush=True)
            if time.monotonic() - begin > WINDOW_SEC:
                break
            await asyncio.sleep(0.2)
        # The time of a client that does not read begins when the buffers of the kernel are full.
        if Action.STOP_READING not in row.sends and statistics.median(took) > row.within + LATE_SEC:
            said = f"{row.name}: ended after {statistics.median(took):.1f} s instead of {row.within:g} s"
            group.wrong.append(said)
            print(f"  {said}", file=sys.stderr, flush=True)

    await asyncio.gather(*map(again, rows))
    await client.samples()
    client.collect()
    group.refused = client.refused
    if client.took:
        group.during_ms = statistics.median(client.took) * 1000
        group.slowest_ms = max(client.took) * 1000
    group.memory_mb = max(0.0, process.resident_mb("VmHWM") - memory)
    end = time.monotonic() + SLACK_SEC
    # One or two belong to the client with a key.
    while (open_ := process.descriptors()) > descriptors + 2 and time.monotonic() < end:
        await asyncio.sleep(0.2)
    group.descriptors = open_ - descriptors
    return group


def line(group: Group) -> str:
    """A line of the table."""
    ends = ", ".join(
        f"{count} {outcome}" for outcome, count in sorted(group.endings.items(), key=lambda each: -each[1])
    )
    return (
        f"| {group.name} | {group.connections} | {ends} | {group.longest:.0f} s | {group.memory_mb:.0f} MB "
        f"| {group.factor:.2f} |"
    )


TABLE = [
    "| connections | number | outcomes | longest | most memory | clients with a key |",
    "|---|---|---|---|---|---|",
]


async def main(target: Target, names: Sequence[str]) -> list[Group]:
    """Run the groups one after the other, so that the memory of each can be told."""
    # The server's machine is another one; here it must not wait for its attackers.
    client = KeyedClient(target)
    os.nice(19)
    found = []
    print("\n".join(TABLE), flush=True)
    try:
        for name in names:
            try:
                group = await run(target, name, [row for row in ROWS if row.group == name], client)
            except (FileNotFoundError, ProcessLookupError):
                raise SystemExit(f"{name}: the server's process has ended") from None
            print(line(group), flush=True)
            found.append(group)
    finally:
        client.end()
    return found


def groups(tls: bool) -> list[str]:
    """The groups for a server with or without TLS."""
    return list(dict.fromkeys(row.group for row in ROWS if tls or row.layer is Layer.HTTP))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--key-file", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--pid", type=int, default=0)
    parser.add_argument("--group", action="append")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    secret = given.key_file.read_text(encoding="ascii").strip()
    aim = Target(given.host, given.port, given.tls, secret, given.model, given.pid)
    result = asyncio.run(main(aim, given.group or groups(given.tls)))
    if given.json:
        said = [{**dataclasses.asdict(group), "factor": group.factor, "line": line(group)} for group in result]
        given.json.write_text(json.dumps(said), encoding="utf-8")
    wrong = [f"{group.name}: {each}" for group in result for each in (*group.wrong, *group.refused[:5])]
    print("\n".join(wrong))
    sys.exit(bool(wrong))
