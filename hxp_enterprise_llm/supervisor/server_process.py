"""One running vLLM server, seen from the main process: started, watched by its heartbeats, drained and killed."""

import asyncio
import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any, NamedTuple

import psutil

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import PRELOAD, Limits, serve
from hxp_enterprise_llm.settings.errors import EngineDied
from hxp_enterprise_llm.supervisor import fork_server, processes
from hxp_enterprise_llm.supervisor.processes import first_end
from hxp_enterprise_llm.supervisor.stop import StopPlan, left

log = logging.getLogger(__name__)

LOOK_SEC = 0.05
ENGINE_TITLE = "VLLM::"
"""How the titles of vLLM's engine and worker processes begin; other children may end at any time."""
LARGEST_MESSAGE = 4096
FAILURES_AT_ONCE = 100
"""How many failures are read before anything else: an engine may send them without end."""
PART_LENGTH = 16_384
"""How many characters of credentials a message has; escaped, they fit into LARGEST_COMMAND_BYTES."""
COMMAND_SEC = 30.0
"""How long the server may take to carry out a command: its event loop has just answered a request."""
REPORT_SEC = 1.0
"""How long the fork server may take to report how a process ended; a stopped fork server never reports it."""
LOST_STATUS = 255
"""What multiprocessing reports as exit status when the fork server has ended before the process."""
KILL_SEC = 30.0
"""How long killed processes may take to end: the kernel needs seconds to release the memory of a large model."""
RETRY_SEC = 0.5


class Heartbeat(NamedTuple):
    """The last heartbeat; `at` is the time of its arrival (monotonic, seconds), the rest as in `worker.heartbeat`."""

    at: float
    in_flight: int
    waiting: int
    connections: int
    open: bool
    taken: int
    progress: list[float]


class Failure(NamedTuple):
    """The reason of a failure in the server's words; `final` if the settings are the reason (see `worker.failures`)."""

    text: str
    final: bool


class ServerProcess:
    """A vLLM API server with its engine and workers.

    `method` is "fork" (from the fork server, which has imported vLLM) or "spawn" (a new interpreter, as in plain vLLM);
    `target` is the function that the new process runs.
    """

    def __init__(
        self,
        method: str,
        arguments: Sequence[str],
        listener: socket.socket,
        credentials: Credentials,
        limits: Limits,
        *,
        target: Callable[..., None] = serve,
    ) -> None:
        context: ForkServerContext | SpawnContext
        context = (
            multiprocessing.get_context("forkserver") if method == "fork" else multiprocessing.get_context("spawn")
        )
        context.set_forkserver_preload([PRELOAD])
        # The main process probes the model here before clients reach the server.
        self._private = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._private.getsockname()[1]}"
        self._channel, self._far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # For the reasons of a failure only. The engine has the other end too, so nothing is sent there.
        self._failures, self._failed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._failures.setblocking(False)
        self._process = context.Process(
            target=target,
            name="APIServer",
            args=(list(arguments), method == "fork"),
            kwargs={
                "private": self._private,
                "listener": listener,
                "channel": self._far_end,
                "failed": self._failed,
                # The engine is a fork of the server: the private key follows when the engine runs.
                "credentials": credentials.without_certificate(),
                "limits": limits,
            },
        )
        self._method = method
        self._starting: asyncio.Future[None] | None = None
        self._killing: asyncio.Task[None] | None = None
        self._fork_server: int | None = None
        self._handle = -1  # pidfd of the server
        self._engines: dict[int, int] = {}  # pid to pidfd
        self._opened = False
        # The number of times that it was given credentials, its start included.
        self._given, self._giving = 1, asyncio.Lock()
        # Credentials that it takes before it opens.
        self._due = credentials if credentials.certificate else None
        self.heartbeat: Heartbeat | None = None
        self.failure: Failure | None = None
        # Why the server sends no more heartbeats, though it runs.
        self._silence, self._silent = "", asyncio.Event()

    async def start(self) -> None:
        """Start the server. With "fork" this returns once the fork server has imported vLLM.

        Raises OSError or EOFError if the server cannot be started.
        """
        asyncio.get_running_loop().add_reader(self._channel, self._hear)
        asyncio.get_running_loop().add_reader(self._failures, self._hear_failure)
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._process.start))
        await asyncio.shield(self._starting)
        self._fork_server = fork_server.pid()
        for end in (self._far_end, self._failed, self._private):
            end.close()
        with suppress(ProcessLookupError):
            self._handle = os.pidfd_open(self._process.pid or 0)

    def watch_engines(self) -> None:
        """From now on, treat the end of an engine process as the end of the server.

        vLLM's API server checks its engine only every 5 s, and then exits with status 0.
        """
        if self._process.pid is None:
            return
        for process in self.engines():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if process.pid not in self._engines and process.name().startswith(ENGINE_TITLE):
                    self._engines[process.pid] = os.pidfd_open(process.pid)

    async def ended(self) -> str:
        """Wait for the end of the server, of a watched engine or of the heartbeats; returns what ended, and how."""
        if self._handle < 0:
            return f"the server {await self._how()}"
        handles = {self._handle: self._process.pid or 0} | {handle: pid for pid, handle in self._engines.items()}
        ending, silent = asyncio.create_task(first_end(handles)), asyncio.create_task(self._silent.wait())
        try:
            await asyncio.wait((ending, silent), return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                return f"the server (pid {self._process.pid}) can no longer send heartbeats: {self._silence}"
            pid = ending.result()
        finally:
            for task in (ending, silent):
                task.cancel()
            await asyncio.gather(ending, silent, return_exceptions=True)
        if pid in self._engines:
            return f"the engine (pid {pid}) ended"
        return f"the server (pid {pid}) {await self._how()}"

    async def open(self, stop: asyncio.Event) -> bool:
        """Let the server accept the connections of the public listener; False at once if `stop` is set before it does.

        Raises EngineDied if the server does not accept them.
        """
        self._opened = True
        if self._due:
            await self._give(self._due)
        self.tell("open")
        return await self._until(lambda heartbeat: heartbeat.open, "begun to accept connections", stop)

    async def take(self, credentials: Credentials) -> None:
        """Make the server require other keys and present another certificate from now on; no effect if it has ended.

        A server that does not confirm this is killed, because it would accept a revoked key. A server that does not
        accept connections yet need not confirm it: it takes its credentials before it carries out "open".
        """
        if not self._opened:
            # Its event loop, which would have to receive them, may be blocked for minutes while it loads.
            self._due = credentials
            return
        try:
            given = await self._give(credentials)
            await self._until(lambda heartbeat: heartbeat.taken >= given, "taken its new keys")
        except EngineDied as error:
            if self.runs():
                log.error("%s; killing it", error)
                self.send_signal(signal.SIGKILL)

    async def _give(self, credentials: Credentials) -> int:
        """Send credentials; returns how often the server has been given some. Raises EngineDied if they do not arrive.

        They are sent as text, not as the descriptor of a file: the kernel limits the descriptors in flight of a user,
        and another process of the same user can use that up.
        """
        text = json.dumps(dataclasses.asdict(credentials))
        commands: list[str | dict[str, str]] = [
            {"part": text[begin : begin + PART_LENGTH]} for begin in range(0, len(text), PART_LENGTH)
        ]
        begin = time.monotonic()
        async with self._giving:
            for command in (*commands, "take"):
                while not self.tell(command):
                    if time.monotonic() - begin > COMMAND_SEC or not self.runs():
                        raise EngineDied("the server could not be sent its new keys")
                    await asyncio.sleep(LOOK_SEC)
            self._given += 1
            return self._given

    async def _until(self, done: Callable[[Heartbeat], bool], what: str, stop: asyncio.Event | None = None) -> bool:
        """Wait until a heartbeat confirms a command; False if `stop` is set before.

        Raises EngineDied if the server does not confirm it within COMMAND_SEC, or ends.
        """
        begin = time.monotonic()
        while not (self.heartbeat and done(self.heartbeat)):
            if stop and stop.is_set():
                return False
            if time.monotonic() - begin > COMMAND_SEC:
                raise EngineDied(f"the server has not {what} within {COMMAND_SEC:g} s")
            if not self.runs():
                raise EngineDied(f"the server has not {what} before its end")
            await asyncio.sleep(LOOK_SEC)
        return True

    async def leave(self, limit: float, *, patient: bool = False) -> bool:
        """Let the server accept no more connections, and wait up to `limit` seconds until its clients disconnect.

        Returns False if requests are still in flight then. With `patient` the limit counts from the last token: use it
        when nothing waits for the server's end. New connections wait in the listener's queue, or go to a successor.
        uvicorn closes idle connections after VLLM_HTTP_TIMEOUT_KEEP_ALIVE.
        """
        self.tell("leave")
        begin, progress = time.monotonic(), None
        while time.monotonic() - begin < limit and self.runs():
            if patient and self.heartbeat and self.heartbeat.progress != progress:
                begin, progress = time.monotonic(), self.heartbeat.progress
            # Without new connections the number only decreases, so an old heartbeat is good enough.
            if self.heartbeat and not self.heartbeat.open and not self.heartbeat.connections:
                return True
            await asyncio.sleep(LOOK_SEC)
        return not (self.runs() and self.heartbeat and self.heartbeat.in_flight)

    def processes(self) -> list[psutil.Process]:
        """All processes of the server: the API server, the engine, workers and their children."""
        if self._process.pid is None:
            # Not forked yet: the fork server still imports vLLM.
            importing = fork_server.pid() if self._method == "fork" else None
            with suppress(psutil.NoSuchProcess):
                return [psutil.Process(importing)] if importing else []
            return []
        family = []
        for pid in processes.family(self._process.pid, self._engines):
            with suppress(psutil.NoSuchProcess):
                family.append(psutil.Process(pid))
        return family

    def engines(self) -> list[psutil.Process]:
        """All processes of the server except the API server."""
        return [process for process in self.processes() if process.pid != self._process.pid]

    async def drain(self, plan: StopPlan) -> bool:
        """Ask the server to finish its requests and exit by the deadlines of `plan`; False if it aborts a request."""
        if self._handle < 0:
            return True
        self.send_signal(signal.SIGTERM)
        if await self._has_ended_within(left(plan.drained)):
            return True
        aborts = bool(self.heartbeat and self.heartbeat.in_flight)
        await self._has_ended_within(left(plan.killed))
        return not aborts

    async def _has_ended_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(first_end({self._handle: 0}), seconds)
        except TimeoutError:
            return not self.runs()
        return True

    async def kill(self) -> None:
        """Kill the remaining processes, and wait until all have ended and the kernel has released their memory.

        A second call waits for the first; cancelling a call does not interrupt the killing.
        """
        if self._killing is None:
            self._killing = asyncio.create_task(self._kill())
        await asyncio.shield(self._killing)

    async def _kill(self) -> None:
        for end in (self._channel, self._failures):
            asyncio.get_running_loop().remove_reader(end)
        begin = time.monotonic()
        await self._end_start()
        if self._process.pid is not None:
            remaining = await processes.kill(self._process.pid, self._engines, KILL_SEC)
            took = time.monotonic() - begin
            if remaining:
                log.error("Killed processes of the server still run after %.0f s: %s", took, remaining)
        for descriptor in [*self._engines.values(), *([self._handle] if self._handle >= 0 else [])]:
            os.close(descriptor)
        self._engines.clear()
        self._handle = -1
        for end in (self._channel, self._far_end, self._failures, self._failed, self._private):
            end.close()
        fork_server.end_stopped()

    async def _end_start(self) -> None:
        """End a start that still waits for the fork server, which may be importing vLLM or be stopped."""
        if self._starting is None:
            return
        end = time.monotonic() + KILL_SEC
        while not self._starting.done() and time.monotonic() < end:
            # multiprocessing may just have started another one.
            await fork_server.kill()
            await asyncio.wait((self._starting,), timeout=RETRY_SEC)
        if self._starting.done():
            # The caller of `start` gets its error.
            self._starting.exception()

    @property
    def watched_engines(self) -> set[int]:
        """PIDs of the engine processes whose end counts as the end of the server."""
        return set(self._engines)

    @property
    def gone(self) -> bool:
        """Whether the server was killed and its processes have ended."""
        return self._killing is not None and self._killing.done()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the API server; no effect if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def tell(self, command: str | dict[str, str]) -> bool:
        """Send the server a command (`worker.heartbeat`); False if there is no room for it, or the server has ended."""
        try:
            self._channel.send(json.dumps(command).encode())
        except OSError:
            return False
        return True

    def runs(self) -> bool:
        """Whether the API server is still running."""
        return self._handle >= 0 and not processes.has_ended(self._handle)

    def _hear(self) -> None:
        message = _received(self._channel)
        if message is None:
            return
        try:
            if "silent" in message:
                self._silence = str(message["silent"])
                self._silent.set()
            else:
                self.heartbeat = Heartbeat(at=time.monotonic(), **message)
        except TypeError as error:
            log.warning("The server sent an invalid message: %s", error)

    def _hear_failure(self) -> None:
        # At once: the end of a process may be noticed next, and the last failure may be the final one.
        for _ in range(FAILURES_AT_ONCE):
            message = _received(self._failures)
            if message is None:
                return
            try:
                failure = Failure(**message["failed"])
            except (KeyError, TypeError) as error:
                log.warning("The server sent an invalid message: %s", error)
                continue
            # The first failure is the cause of later ones, unless a later one is recognised as final.
            if self.failure is None or (failure.final and not self.failure.final):
                self.failure = failure

    async def _how(self) -> str:
        """How the server ended, in words, as far as the fork server has reported it."""
        await asyncio.to_thread(self._process.join, REPORT_SEC)
        status = self._process.exitcode
        if status is None:
            return "ended"
        if status == LOST_STATUS and self._method == "fork" and not self._fork_server_runs():
            return "ended; its exit status is unknown, since the fork server has ended too"
        return f"was killed by {processes.signal_name(-status)}" if status < 0 else f"ended with status {status}"

    def _fork_server_runs(self) -> bool:
        """Whether the fork server that this server comes from still runs."""
        now = fork_server.pid()
        return now is not None and now == self._fork_server and processes.how_child_ended(now) == "still runs"


def _received(end: socket.socket) -> dict[str, Any] | None:
    """The next message on a socket of the server; None if there is none. An invalid message is empty."""
    try:
        text = end.recv(LARGEST_MESSAGE)
    except BlockingIOError:
        return None
    except OSError:
        text = b""
    if not text:
        # The server has closed its end.
        asyncio.get_running_loop().remove_reader(end)
        return None
    with suppress(ValueError, RecursionError):
        message = json.loads(text)
        if isinstance(message, dict):
            return message
    return {}
