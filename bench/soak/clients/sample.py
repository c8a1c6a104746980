"""Print what the processes of units use, as JSON. sample.py UNIT…

Runs in the machine as root, with the distribution's Python. For each unit: proportional set size (KiB), descriptors and
threads of each process that has a role, and the number of files that the unit has in its /tmp and /run. A role that two
processes have at the moment (a server and its successor) is left out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

TITLES = {"VLLM::APIServer": "server", "VLLM::EngineCore": "engine"}
PLACES = {"files in /tmp": ("tmp", "var/tmp"), "files in /run": ("run",)}
GROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup")


def files(folder: str) -> int:
    """Number of entries below a folder that are no directories."""
    return sum(len(names) for _, _, names in os.walk(folder))


def process(pid: str) -> dict[str, int]:
    """What a process uses; nothing if it has ended meanwhile, as a server does some time after a reload."""
    proc = Path("/proc", pid)
    try:
        (pss,) = [line for line in (proc / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:")]
        return {
            "memory": int(pss.split()[1]),
            "descriptors": len(list((proc / "fd").iterdir())),
            "threads": len(list((proc / "task").iterdir())),
        }
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return {}


def title(pid: str) -> str:
    """The title of a process, "" if it has ended."""
    try:
        return Path("/proc", pid, "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def roles(main: str, group: str) -> dict[str, str]:
    """The PID of each role of a unit."""
    found: dict[str, list[str]] = {"main process": [main]}
    members = next(file for place in GROUPS if (file := Path(f"{place}{group}/cgroup.procs")).exists())
    for pid in members.read_text().split():
        for beginning, role in TITLES.items():
            if title(pid).startswith(beginning):
                found.setdefault(role, []).append(pid)
    return {role: pids[0] for role, pids in found.items() if len(pids) == 1}


def unit(name: str) -> dict[str, dict[str, int]]:
    """What a unit uses."""
    shown = subprocess.run(
        ["systemctl", "show", name, "--property=MainPID,ControlGroup"], capture_output=True, text=True, check=True
    ).stdout
    properties = dict(line.split("=", 1) for line in shown.splitlines())
    main = properties["MainPID"]
    found = {role: process(pid) for role, pid in roles(main, properties["ControlGroup"]).items()}
    root = f"/proc/{main}/root"
    found["unit"] = {what: sum(files(f"{root}/{folder}") for folder in folders) for what, folders in PLACES.items()}
    return found


print(json.dumps({name: unit(name) for name in sys.argv[1:]}))
