"""Starts a server and waits for its first answer, for as long as loading makes progress."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from hxp_enterprise_llm.settings.errors import EngineDied, EngineHung, SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding
from hxp_enterprise_llm.supervisor import fork_server, processes
from hxp_enterprise_llm.supervisor.process_use import memory_and_reads
from hxp_enterprise_llm.supervisor.readiness import NotAnswered
from hxp_enterprise_llm.supervisor.server_process import ServerProcess

PROGRESS_INTERVAL_SEC = 2.0
PROGRESS_BYTES = 1 << 20
"""Growth of memory or reads between two checks that counts as progress of loading."""
END_SEC = 1.0


async def bring_up(
    server: ServerProcess,
    stop: asyncio.Event,
    limit: float,
    *,
    on_import: Callable[[], None],
    answer: Callable[[], Any],
    feed: Callable[[bool], None],
    file: str,
) -> bool:
    """Start the server and wait for `answer` to return; False if `stop` is set before.

    `on_import` is called when vLLM is imported and loading begins; `feed` is called regularly with whether loading
    makes progress. `limit` is START_TIMEOUT_SEC, `file` the settings file to name in errors.
    Raises EngineDied, EngineHung after `limit` seconds without progress, or SettingsRefused if vLLM refuses them.
    """
    if stop.is_set():
        return False
    watching = asyncio.create_task(_watch_progress(server, limit, feed))
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(server.start())
    tasks: list[asyncio.Task[Any]] = [watching, stopping, starting]
    try:
        await asyncio.wait((starting, stopping, watching), return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return False
        if watching.done():
            watching.result()
        try:
            starting.result()
        except (OSError, EOFError) as error:
            raise EngineDied(f"the server could not be started: {await _fork_server_end() or error}") from error
        on_import()
        ending, answering = asyncio.create_task(server.ended()), asyncio.create_task(answer())
        tasks += [ending, answering]
        await asyncio.wait((ending, answering, stopping, watching), return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            return False
        if watching.done():
            watching.result()
        if ending.done():
            raise _why(server, ending.result(), file)
        try:
            answering.result()
        except NotAnswered as error:
            # A process that ends closes its connections first; the reason of its end says more than the failed request.
            await asyncio.wait((ending,), timeout=END_SEC)
            if ending.done():
                raise _why(server, ending.result(), file) from error
            raise EngineDied(f"the model does not answer a request: {error}") from error
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _why(server: ServerProcess, end: str, file: str) -> EngineDied | SettingsRefused:
    """The error for a server that ended before it was ready."""
    if server.failure and server.failure.final:
        return SettingsRefused(
            [SettingsFinding(file, 0, f"vLLM refuses these settings for this model: {server.failure.text}")]
        )
    why = server.failure.text if server.failure else "the lines above show the reason"
    return EngineDied(f"{end} before the model was ready; {why}")


async def _fork_server_end() -> str:
    """How the fork server ended, "" if it runs."""
    pid = fork_server.pid()
    # A process that ends closes its connections first; the kernel knows how it ended only a moment later.
    if pid is None or not await processes.all_ended([pid], END_SEC):
        return ""
    how = processes.how_child_ended(pid)
    return f"the fork server (pid {pid}) {how} while it imported vLLM; the lines above may show the reason"


async def _watch_progress(server: ServerProcess, limit: float, feed: Callable[[bool], None]) -> None:
    """Call `feed` with whether memory or reads of the loading server have grown.

    Engines are watched as soon as they exist: an engine can outlive its server, which may end before the first answer.
    """
    seen, moved = (0, 0), time.monotonic()
    feed(True)
    while time.monotonic() - moved < limit:
        await asyncio.sleep(min(PROGRESS_INTERVAL_SEC, limit / 4))
        now = await asyncio.to_thread(lambda: memory_and_reads(server.processes()))
        progress = any(new - old >= PROGRESS_BYTES for new, old in zip(now, seen, strict=True))
        if progress:
            seen, moved = now, time.monotonic()
        server.watch_engines()
        feed(progress)
    raise EngineHung(f"loading has made no progress for {limit:g} s (START_TIMEOUT_SEC); the server was killed")
