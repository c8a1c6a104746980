"""How often the kernel has killed a process of this unit because memory ran out."""

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def oom_kills(membership: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> int:
    """The count of the kernel for the control group of this process, 0 if there is none.

    Version 2 has it in memory.events, version 1 in memory.oom_control, both as a line `oom_kill N`
    (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst of Linux).
    """
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder = root / controllers / group.lstrip("/")
        for file in (folder / "memory.events", folder / "memory.oom_control"):
            try:
                text = file.read_text(encoding="ascii")
            except OSError:
                continue
            for entry in text.splitlines():
                name, _, count = entry.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
