"""The processes of a server: found by process group and descent, killed, and awaited without blocking the event loop.

A server leads a process group of its own (`protocol.worker.serve`), which its engine, workers and their children
inherit: they stay findable when the server has ended before them.
"""

import asyncio
import os
import select
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Relations(NamedTuple):
    """The parent, process group and session of a process, as in /proc/PID/stat (proc(5))."""

    parent: int
    group: int
    session: int


def relations(proc: Path = PROC) -> dict[int, Relations]:
    """The relations of all visible processes, by PID."""
    found = {}
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        with suppress(OSError, ValueError):
            # The name, in parentheses, may hold any character.
            fields = (directory / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            found[int(directory.name)] = Relations(*map(int, fields[1:4]))
    return found


def family(leader: int, others: Iterable[int] = ()) -> list[int]:
    """PIDs of all running processes among `leader`, the group that it leads, `others`, and the descendants of any.

    A process that has ended is left out even if it has not been reaped: the kernel has released its memory. The group
    must belong to this process's session, because the number of a group can be reused.
    """
    table = relations()
    session = os.getsid(0)
    found = {pid for pid, of in table.items() if of.group == leader and of.session == session}
    found |= {leader, *others} & table.keys()
    while new := {pid for pid, of in table.items() if of.parent in found} - found:
        found |= new
    return sorted(pid for pid in found if _runs(pid))


async def kill(leader: int, others: Collection[int], within_sec: float) -> list[int]:
    """Kill a family and wait until it has ended; returns the PIDs that still run after `within_sec` seconds."""
    deadline = time.monotonic() + within_sec
    known = set(others)
    while left := await asyncio.to_thread(family, leader, known):
        known.update(left)
        if os.getpgid(0) != leader:
            with suppress(ProcessLookupError):
                # The whole group at once, so that no member can fork a child that survives.
                os.killpg(leader, signal.SIGKILL)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return left
        await all_ended(left, remaining)
    return []


async def all_ended(pids: Iterable[int], within_sec: float | None) -> bool:
    """Wait until processes, children of this one or not, have ended; False after `within_sec` seconds, if given."""
    handles = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            handles[os.pidfd_open(pid)] = pid
    waiting = dict(handles)

    async def wait() -> None:
        while waiting:
            ended = await first_end(waiting)
            for handle in [handle for handle, pid in waiting.items() if pid == ended]:
                del waiting[handle]

    try:
        await asyncio.wait_for(wait(), within_sec)
    except TimeoutError:
        return False
    finally:
        for handle in handles:
            os.close(handle)
    return True


async def first_end(handles: dict[int, int]) -> int:
    """Wait until one of the processes in `handles` (pidfd to PID) has ended; returns its PID."""
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


def how_child_ended(pid: int) -> str:
    """How a child of this process ended, in words, without reaping it; "ended" once it is reaped."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return "ended"
    if result is None:
        return "still runs"
    if result.si_code == os.CLD_EXITED:
        return f"ended with status {result.si_status}"
    return f"was killed by {signal_name(result.si_status)}"


def signal_name(number: int) -> str:
    """SIGKILL for 9; "signal 99" for a number without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def has_ended(handle: int) -> bool:
    """Whether the process of a pidfd has ended: all its threads have, and the kernel has released its memory."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


def _runs(pid: int) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not has_ended(handle)
    finally:
        os.close(handle)
