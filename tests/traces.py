"""Traces of a machine on the host; none may remain after its removal."""

from pathlib import Path

from base_tree import CACHE
from machine import CGROUPS


def traces(name: str) -> list[str]:
    """Mounts, control groups, folders and processes of this host that contain a machine's name or its beginning."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    found = [line for line in mounts if name in line]
    found += [str(path) for path in (*CGROUPS.glob(f"*/{name}*"), *(CACHE / "machines").glob(f"{name}*"))]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes()
        except OSError:  # it has ended
            continue
        if name.encode() in command:
            found.append(f"{file.parent.name}: {command.decode(errors='replace')}")
    return found
