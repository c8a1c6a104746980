"""The kernel's counts for a unit, from the files of its control group, of version 2 or version 1.

The files are those of Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of Linux.
"""

from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
V1_NO_LIMIT = 2**62
"""Version 1 writes "no limit" as the largest number of pages, about 2**63 bytes."""


class Usage(NamedTuple):
    """Figures of one control group; None if the kernel does not count it, or if there is no limit."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    cpu_seconds: float | None = None
    cpu_limit_cores: float | None = None
    tasks: int | None = None
    tasks_limit: int | None = None
    oom_kills: int | None = None


def read(group: str, root: Path = CGROUPS) -> Usage:
    """The figures of control group `group` (a unit's ControlGroup property); all None if there is no such group."""
    if not group.strip("/"):
        return Usage()
    below = group.lstrip("/")
    if (root / "cgroup.controllers").exists():
        return _version_2(root / below)
    return _version_1(root, below)


def _version_2(folder: Path) -> Usage:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    microseconds = _entry(folder / "cpu.stat", "usage_usec")
    return Usage(
        memory_bytes=_number(_text(folder / "memory.current")),
        memory_peak_bytes=_number(_text(folder / "memory.peak")),
        memory_limit_bytes=_number(_text(folder / "memory.max")),
        cpu_seconds=None if microseconds is None else microseconds / 1e6,
        cpu_limit_cores=_cores(_number(quota), _number(period)),
        tasks=_number(_text(folder / "pids.current")),
        tasks_limit=_number(_text(folder / "pids.max")),
        oom_kills=_entry(folder / "memory.events", "oom_kill"),
    )


def _version_1(root: Path, below: str) -> Usage:
    memory, cpu, pids = (root / controller / below for controller in ("memory", "cpu", "pids"))
    limit = _number(_text(memory / "memory.limit_in_bytes"))
    nanoseconds = _number(_text(root / "cpuacct" / below / "cpuacct.usage"))
    if nanoseconds is None:
        # If cpuacct is not mounted with cpu, the count is in systemd's own hierarchy: version 2 without controllers.
        microseconds = _entry(root / "unified" / below / "cpu.stat", "usage_usec")
        nanoseconds = None if microseconds is None else microseconds * 1000
    return Usage(
        memory_bytes=_number(_text(memory / "memory.usage_in_bytes")),
        memory_peak_bytes=_number(_text(memory / "memory.max_usage_in_bytes")),
        memory_limit_bytes=limit if limit is not None and limit < V1_NO_LIMIT else None,
        cpu_seconds=None if nanoseconds is None else nanoseconds / 1e9,
        cpu_limit_cores=_cores(_number(_text(cpu / "cpu.cfs_quota_us")), _number(_text(cpu / "cpu.cfs_period_us"))),
        tasks=_number(_text(pids / "pids.current")),
        tasks_limit=_number(_text(pids / "pids.max")),
        oom_kills=_entry(memory / "memory.oom_control", "oom_kill"),
    )


def _text(file: Path) -> str:
    """The content of a file, empty if it is missing: a controller may be off, and a unit may end meanwhile."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int | None:
    """A count; None for "max" and for -1 of version 1, which both mean no limit."""
    return int(text) if text.isdigit() else None


def _entry(file: Path, name: str) -> int | None:
    """The count in a line `name N` of a file."""
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value)
    return None


def _cores(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and period else None
