"""What a server's processes use of the host, and whether a signal has stopped one."""

from collections.abc import Sequence
from contextlib import suppress

import psutil


def memory_and_reads(processes: Sequence[psutil.Process]) -> tuple[int, int]:
    """Resident memory (bytes), and what they have read since they started (bytes)."""
    memory = reads = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory += process.memory_info().rss
            reads += process.io_counters().read_chars
    return memory, reads


def effort(processes: Sequence[psutil.Process]) -> tuple[float, int]:
    """CPU time (seconds), and what they have read from disk, or had paged in (bytes)."""
    seconds, read = 0.0, 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            seconds += times.user + times.system
            read += process.io_counters().read_bytes
    return seconds, read


def stopped(processes: Sequence[psutil.Process]) -> str:
    """Name and pid of a process that a signal has stopped, empty if there is none."""
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                return f"{process.name()} (pid {process.pid})"
    return ""
