"""One running vLLM server, seen from the main process: start it, learn of its end, end it."""

import asyncio
import multiprocessing
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext, SpawnContext

import psutil

from hxp_enterprise_llm.services.core.service_manager.server import serve

ENGINE_TITLE = "VLLM::"
"""How vLLM's engine and worker processes call themselves; any other child may come and go."""


PRELOAD = "hxp_enterprise_llm.services.core.service_manager.preload"


class ServerProcess:
    """A vLLM API server with the engine and workers below it.

    `method` is "fork" (from the fork server that has imported vLLM) or "spawn" (a new interpreter, as plain vLLM).
    """

    def __init__(
        self,
        method: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        listener: socket.socket,
        api_keys: Sequence[str],
    ) -> None:
        context: ForkServerContext | SpawnContext
        context = (
            multiprocessing.get_context("forkserver") if method == "fork" else multiprocessing.get_context("spawn")
        )
        context.set_forkserver_preload([PRELOAD])
        self._process = context.Process(
            target=serve,
            name="APIServer",
            args=(list(arguments), environment, method == "fork", listener, list(api_keys)),
        )
        self._engines: dict[int, int] = {}  # pid to pidfd

    async def start(self) -> None:
        """Start it. With "fork" this returns once the fork server has imported vLLM."""
        await asyncio.to_thread(self._process.start)

    def watch_engines(self) -> None:
        """From now on the end of an engine process is the end of the server.

        vLLM's API server itself looks only every 5 s, and then ends with status 0.
        """
        for process in self._descendants():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if process.pid not in {self._process.pid, *self._engines} and process.name().startswith(ENGINE_TITLE):
                    self._engines[process.pid] = os.pidfd_open(process.pid)

    async def ended(self) -> str:
        """Wait for the end of the server or of a watched engine, and say in words what ended and how."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[int] = loop.create_future()

        def set_end(pid: int) -> None:
            if not end.done():
                end.set_result(pid)

        watched = {self._process.sentinel: self._process.pid or 0} | {fd: pid for pid, fd in self._engines.items()}
        for descriptor, pid in watched.items():
            loop.add_reader(descriptor, set_end, pid)
        try:
            pid = await end
        finally:
            for descriptor in watched:
                loop.remove_reader(descriptor)
        return f"the engine (pid {pid}) ended" if pid in self._engines else f"the server (pid {pid}) {self._how()}"

    @property
    def exit_status(self) -> int | None:
        """Exit status of the server, negative for a signal, None while it runs."""
        return self._process.exitcode

    def memory_and_reads(self) -> tuple[int, int]:
        """Resident memory of all processes (bytes), and what they have read since they started (bytes)."""
        memory = reads = 0
        for process in self._descendants():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory += process.memory_info().rss
                reads += process.io_counters().read_chars
        return memory, reads

    async def drain(self, timeout: float) -> bool:
        """Ask it to finish its requests and end; whether it did within `timeout` seconds."""
        self._process.terminate()
        await asyncio.to_thread(self._process.join, timeout)
        return self._process.exitcode is not None

    def kill(self) -> None:
        """End whatever is left of it, at once."""
        family = self._descendants()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5)
        for descriptor in self._engines.values():
            os.close(descriptor)
        self._engines.clear()

    def _descendants(self) -> list[psutil.Process]:
        if self._process.pid is None:
            # Not forked yet: what runs is the fork server, which is still importing.
            return psutil.Process().children(recursive=True)
        try:
            server = psutil.Process(self._process.pid)
            family = [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        known = {process.pid for process in family}
        # An engine outlives its server for a moment, and then is nobody's descendant.
        for pid in self._engines.keys() - known:
            with suppress(psutil.NoSuchProcess):
                family.append(psutil.Process(pid))
        return family

    def _how(self) -> str:
        self._process.join()
        status = self._process.exitcode or 0
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
