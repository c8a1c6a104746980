"""Resources that a server's processes use, and whether a signal has stopped a process."""

from collections.abc import Sequence
from contextlib import suppress

import psutil


def memory_and_reads(processes: Sequence[psutil.Process]) -> tuple[int, int]:
    """Resident memory, and bytes read by the processes since they started, from disk or cache."""
    memory = reads = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory += process.memory_info().rss
            reads += process.io_counters().read_chars
    return memory, reads


def effort(processes: Sequence[psutil.Process]) -> tuple[float, int]:
    """CPU time (seconds), and bytes that the kernel has read from disk for the processes, by paging or on request."""
    seconds, read = 0.0, 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            seconds += times.user + times.system
            read += process.io_counters().read_bytes
    return seconds, read


def stopped(processes: Sequence[psutil.Process]) -> str:
    """Name and PID of a process that a signal has stopped, "" if there is none."""
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                return f"{process.name()} (pid {process.pid})"
    return ""
