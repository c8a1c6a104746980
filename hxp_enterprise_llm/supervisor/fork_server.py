"""The process that has imported vLLM and that every server is forked from: multiprocessing's, kept alive."""

import asyncio
import logging
import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver

import psutil

log = logging.getLogger(__name__)

SHORT_LIFE_SEC, LATER_SEC = 60.0, 30.0
"""A new fork server that ends sooner than the first cannot import, and is tried again after the second."""
END_SEC = 5.0
"""How long the kernel gets to end one."""


async def keep() -> None:
    """Replace a fork server that ends, at once, so that the next engine does not wait for an import; never returns."""
    begin = time.monotonic() - SHORT_LIFE_SEC
    while server := pid():
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(server)
            try:
                await first_end({handle: server})
            finally:
                os.close(handle)
        if time.monotonic() - begin < SHORT_LIFE_SEC:
            await asyncio.sleep(LATER_SEC)
        log.warning("The fork server (pid %d) ended; starting a new one", server)
        await asyncio.to_thread(forkserver.ensure_running)
        begin = time.monotonic()
    await asyncio.Event().wait()


def pid() -> int | None:
    """PID of the fork server, if there is one."""
    server: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # there is no public name
    return server


def use(environment: Mapping[str, str]) -> None:
    """Have all that is started from now on start with these variables, also what comes from the fork server.

    One that was started with others is ended: much is read when a library is loaded (libgomp's threads, LD_PRELOAD),
    which a fork can no longer take in.
    """
    if dict(os.environ) == dict(environment):
        return
    os.environ.clear()
    os.environ.update(environment)
    server = pid()
    if server is None:
        return
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(server)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            # multiprocessing itself asks for its exit status, and starts another when that is needed.
            select.select([handle], [], [], END_SEC)
        finally:
            os.close(handle)


def end_stopped() -> None:
    """End a fork server that a signal has stopped: the next start, or this process's own exit, would wait for it."""
    server = pid()
    with suppress(psutil.NoSuchProcess):
        if server and psutil.Process(server).status() == psutil.STATUS_STOPPED:
            psutil.Process(server).kill()


async def first_end(handles: dict[int, int]) -> int:
    """Wait until one of some processes, pidfd to pid, has ended; its pid."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[int] = loop.create_future()

    def set_end(pid: int) -> None:
        if not end.done():
            end.set_result(pid)

    for descriptor, pid in handles.items():
        loop.add_reader(descriptor, set_end, pid)
    try:
        return await end
    finally:
        for descriptor in handles:
            loop.remove_reader(descriptor)
