#!/usr/bin/python3
"""A booted machine of machine.py as autopkgtest's testbed: `autopkgtest … -- tests/virt_machine.py PID`.

PID is that of the machine's systemd on this host. An autopkgtest server is a program that defines these hooks
and then runs VirtSubproc (README.virtualisation-server in autopkgtest's documentation).
"""

import sys

sys.path.insert(0, "/usr/share/autopkgtest/lib")
import VirtSubproc  # type: ignore[import-not-found]  # autopkgtest brings it

LEADER = int(sys.argv[1])
CAPABILITIES = ["root-on-testbed", "isolation-container"]


def hook_open() -> None:
    VirtSubproc.auxverb = ["nsenter", f"--target={LEADER}", "--all", "--"]


def hook_downtmp(path: str | None) -> str:
    """The testbed's directory for autopkgtest, which is also reachable from this host."""
    directory: str = VirtSubproc.downtmp_mktemp(path)
    CAPABILITIES.append(f"downtmp-host=/proc/{LEADER}/root{directory}")
    return directory


def hook_cleanup() -> None:
    VirtSubproc.downtmp_remove()


def hook_capabilities() -> list[str]:
    return CAPABILITIES


VirtSubproc.main()
