"""multiprocessing's fork server, kept alive: it has imported vLLM, and every server is forked from it."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver

import psutil

from hxp_enterprise_llm.supervisor import processes

log = logging.getLogger(__name__)

SHORT_LIFE_SEC, LATER_SEC = 60.0, 30.0
"""A new fork server that ends within the first time probably cannot import vLLM: it is replaced after the second."""
END_SEC = 5.0
"""How long a killed fork server may take to end."""


def pid() -> int | None:
    """PID of the fork server that was started last, even if it has ended; None before the first start."""
    server: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # there is no public name
    return server


async def keep(
    current: Callable[[], int | None] = pid,
    start: Callable[[], None] = forkserver.ensure_running,
    later_sec: float = LATER_SEC,
) -> None:
    """Replace a fork server that ends, so that the next engine does not wait for an import; never returns.

    `current` gives the PID of the fork server; `start` starts a fork server unless one is running. If that fails, it is
    tried again after `later_sec` seconds: running servers do not need the fork server.
    """
    begin = time.monotonic() - SHORT_LIFE_SEC
    while server := current():
        try:
            await processes.all_ended([server], None)
            pause = 0.0 if time.monotonic() - begin >= SHORT_LIFE_SEC else later_sec
            after = f" in {pause:g} s" if pause else ""
            how = processes.how_child_ended(server)
            log.warning("The fork server (pid %d) %s; starting a new one%s", server, how, after)
            await asyncio.sleep(pause)
            begin = time.monotonic()
            await asyncio.to_thread(start)
        except Exception as error:
            log.error("The fork server cannot be replaced: %s; trying again in %g s", error, later_sec)
            await asyncio.sleep(later_sec)
    await asyncio.Event().wait()


async def use(environment: Mapping[str, str]) -> None:
    """Set the environment of all processes that start from now on, including those forked by the fork server.

    Kills a fork server that started with other variables: some variables are read when a library is loaded (libgomp's
    threads, LD_PRELOAD), and a fork does not load it again.
    """
    if dict(os.environ) == dict(environment):
        return
    os.environ.clear()
    os.environ.update(environment)
    await kill()


async def kill() -> None:
    """Kill the fork server if there is one. multiprocessing itself reaps it, and starts another one when needed."""
    server = pid()
    if server is None:
        return
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)
    await processes.all_ended([server], END_SEC)


def end_stopped() -> None:
    """Kill a fork server that a signal has stopped: the next start, or this process's own exit, would wait for it."""
    server = pid()
    with suppress(psutil.NoSuchProcess):
        if server and psutil.Process(server).status() == psutil.STATUS_STOPPED:
            psutil.Process(server).kill()
