"""Where the process of `cli.download` runs: in a transient unit that may use the network and write models, no more."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hxp_enterprise_llm.cli import output
from hxp_enterprise_llm.engine.model_directory import MODELS
from hxp_enterprise_llm.system.processes import ProgramFailed, conversation, run

PROGRAM = [sys.executable, "-I", "-m", "hxp_enterprise_llm.cli.download"]
SYSTEMD = Path("/run/systemd/system")
"""Exists if systemd is the service manager (sd_booted(3))."""
STOP_SEC = 15.0

PROPERTIES = (
    # Limits. Cached pages of the files count as memory of the unit; the kernel reclaims them.
    "MemoryMax=1G",
    "MemorySwapMax=0",
    "TasksMax=32",
    "LimitCORE=0",
    "TimeoutStopSec=5s",
    # Files: the models' directory, and for the names of hosts the directories to which /etc/resolv.conf may be a link
    "ProtectSystem=strict",
    "TemporaryFileSystem=/var:ro /run:ro /opt:ro",
    # PrivateTmp= alone puts both directories on the host's disk without a limit. Python wants a directory that it may
    # write for temporary files, and one for semaphores.
    "ReadOnlyPaths=/tmp /var/tmp",
    "TemporaryFileSystem=/run/tmp:mode=1777,size=64M,nr_inodes=4k,nosuid,nodev,noexec",
    "TemporaryFileSystem=/dev/shm:mode=1777,size=16M,nr_inodes=1k,nosuid,nodev,noexec",
    "Environment=TMPDIR=/run/tmp",
    "BindReadOnlyPaths=-/opt/citadel -/run/systemd/resolve -/run/resolvconf -/run/NetworkManager -/run/nscd",
    "ProtectHome=yes",
    "InaccessiblePaths=-/etc/citadel-llm -/mnt -/media -/srv",
    "PrivateMounts=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "DevicePolicy=closed",
    "PrivateUsers=yes",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "KeyringMode=private",
    "RemoveIPC=yes",
    "PrivateIPC=yes",
    "UMask=0022",
    # Privileges and system calls
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    # AF_UNIX: systemd-resolved and nscd.
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "SystemCallArchitectures=native",
    # With the last four, the process isolates itself from models of its user, see `system.isolation`.
    "SystemCallFilter=@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp",
    # Not memfd_create: a file in memory can be executed. Not inotify: the kernel counts its instances for root too.
    # systemd/citadel-llm@.service has both reasons.
    "SystemCallFilter=~@privileged @resources memfd_create inotify_init inotify_init1",
    "SystemCallErrorNumber=EPERM",
)
"""Properties of the unit (systemd.exec(5)), besides its user and the models' directory."""
DIRECT = "systemd is not running, so the download runs as {user} without a sandbox"


def command(unit: str, user: str, models: Path, writable: bool) -> list[str]:
    """The command that runs PROGRAM in the transient unit `unit`, with its own standard input and output."""
    bind = "BindPaths" if writable else "BindReadOnlyPaths"
    # NoExecPaths=: what the process writes, it cannot execute.
    properties = [f"User={user}", *PROPERTIES, f"{bind}={models}", f"NoExecPaths={models}"]
    return [
        "systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--service-type=exec", f"--unit={unit}",
        "--description=citadel-llm: download of a model", *(f"--property={each}" for each in properties),
        "--", *PROGRAM,
    ]  # fmt: skip


@contextmanager
def downloader(user: str, writable: bool) -> Iterator[subprocess.Popen[bytes]]:
    """The process that downloads, as `user`; it ends when the block is left. Raises ProgramFailed.

    Without systemd there is no sandbox. Users other than root, who cannot start a unit, keep their own rights.
    """
    if os.geteuid() != 0:
        with conversation(PROGRAM) as process:
            yield process
        return
    if not SYSTEMD.is_dir():
        output.complain(f"warning: {DIRECT.format(user=user)}")
        with conversation(PROGRAM, user) as process:
            yield process
        return
    unit = f"citadel-llm-pull-{secrets.token_hex(4)}.service"
    try:
        with conversation(command(unit, user, MODELS, writable)) as process:
            yield process
    except ProgramFailed:
        # systemd-run has been killed, but not its unit.
        run(["systemctl", "stop", unit], STOP_SEC)
        raise
