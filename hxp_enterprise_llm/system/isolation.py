"""Isolates instances, which run as one user, where the directives of the unit cannot.

The unit separates files, memory and shared memory. But the kernel lets a process send signals to the other processes of
its user and set their limits, also in another namespace, and listen on any free port, such as that of a stopped
instance. Landlock (Documentation/userspace-api/landlock.rst of Linux) and a seccomp filter refuse that. Both apply to
all processes that this process starts later, and cannot be removed. docs/decisions/0014 gives the reasons.
"""

import ctypes
import errno
import logging
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, the same on every architecture."""
ASK_VERSION = 1
SIGNALS_SINCE = 6
"""Version of Landlock that can scope signals and abstract sockets: Linux 6.12."""
PORTS_SINCE = 4
"""Version that knows TCP ports: Linux 6.7."""
ABSTRACT_SOCKETS, SIGNALS, BIND_TCP, NET_PORT = 1, 2, 1, 2
"""LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, LANDLOCK_SCOPE_SIGNAL, LANDLOCK_ACCESS_NET_BIND_TCP and LANDLOCK_RULE_NET_PORT
of linux/landlock.h."""

FILES_SINCE = 2
"""Version that can let a process rename files between directories: Linux 5.19. Version 1 refuses that to all."""
PATH_BENEATH = 1
EXECUTE, READ_FILE, READ_DIRECTORY = 1 << 0, 1 << 2, 1 << 3
MAKE_CHARACTER_DEVICE, MAKE_BLOCK_DEVICE, TRUNCATE = 1 << 6, 1 << 11, 1 << 14
"""LANDLOCK_RULE_PATH_BENEATH, and some LANDLOCK_ACCESS_FS_* of linux/landlock.h."""
FILE_RIGHTS = {2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""All rights that a version knows, without LANDLOCK_ACCESS_FS_IOCTL_DEV: drivers of GPUs need it. The last version
stands for the later ones."""
OF_FILES = EXECUTE | (1 << 1) | READ_FILE | TRUNCATE
"""The rights that a rule for a file, not a directory, may give."""
READ_ONLY = EXECUTE | READ_FILE | READ_DIRECTORY

DYNAMIC_UIDS = range(61184, 65520)
"""UIDs of DynamicUser= (https://systemd.io/UIDS-GIDS/). No other process has the UID of such a unit."""

ALLOW, REFUSE, DIFFERS = 0x7FFF0000, 0x00050000, 1
"""SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(0) and SCMP_CMP_NE of seccomp.h."""


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h."""

    _fields_ = (("argument", ctypes.c_uint), ("how", ctypes.c_int), ("value", ctypes.c_uint64), ("_", ctypes.c_uint64))


class Files(NamedTuple):
    """Rights to files: those that a domain refuses, unless `allowed` gives them below a path."""

    refused: int
    allowed: Mapping[str, int]


def landlock_version() -> int:
    """Version of Landlock's interface in this kernel; 0 if the kernel has none or it is not enabled."""
    found: int = _libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION)
    return max(found, 0)


class Kernel:
    """The calls to the kernel. The methods raise OSError."""

    def user(self) -> int:
        """UID of this process."""
        return os.getuid()

    def landlock_version(self) -> int:
        """Version of Landlock's interface; 0 if the kernel has none or it is not enabled."""
        return landlock_version()

    def restrict(self, scopes: int, ports: Iterable[int] | None, files: Files | None = None) -> None:
        """Enter a Landlock domain that `scopes` cannot leave, with these TCP ports to listen on and these files."""
        if not scopes and ports is None and files is None:
            return
        libc = _libc()
        # struct landlock_ruleset_attr: access to files, to the network, scopes.
        attributes = struct.pack("QQQ", files.refused if files else 0, 0 if ports is None else BIND_TCP, scopes)
        ruleset = _checked(libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
        try:
            for port in ports or ():
                # struct landlock_net_port_attr
                _checked(libc.syscall(ADD_RULE, ruleset, NET_PORT, struct.pack("QQ", BIND_TCP, port), 0))
            for path, rights in files.allowed.items() if files else ():
                _allow(libc, ruleset, path, rights)
            _checked(libc.syscall(RESTRICT_SELF, ruleset, 0))
        finally:
            os.close(ruleset)

    def refuse_limits_of_others(self) -> None:
        """Let prlimit(2) set limits of the calling process only: RLIMIT_CPU=0 would end another process."""
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_init.restype = ctypes.c_void_p
        filter_ = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
        if not filter_:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        try:
            # 0 is the caller. SystemCallArchitectures=native forbids the other architectures of x86-64.
            other = _Comparison(0, DIFFERS, 0, 0)
            call = library.seccomp_syscall_resolve_name(b"prlimit64")
            action = ctypes.c_uint32(REFUSE | errno.EPERM)
            _negative(library.seccomp_rule_add_array(filter_, action, call, 1, ctypes.byref(other)))
            _negative(library.seccomp_load(filter_))
        finally:
            library.seccomp_release(filter_)


def enter(ports: Iterable[int] | None, kernel: Kernel | None = None) -> None:
    """Isolate this process, and all that it starts, from other processes of its user, as far as the kernel can.

    `ports` are the TCP ports that they may listen on, None for any. Call it while there is one thread.
    Logs what the kernel cannot do; the rest of the isolation then still applies.
    """
    kernel = kernel or Kernel()
    try:
        # First: libseccomp sets NoNewPrivileges, which Landlock requires; outside a unit nothing else sets it.
        kernel.refuse_limits_of_others()
    except OSError as error:
        log.warning("This process could change the limits of other models on this host: seccomp: %s", error)
    version = kernel.landlock_version()
    if version < SIGNALS_SINCE and kernel.user() not in DYNAMIC_UIDS:
        log.info(
            "Models can signal each other: this kernel has Landlock %d; version %d (Linux 6.12) refuses that, and so "
            "does VLLM_USER=dynamic",
            version,
            SIGNALS_SINCE,
        )
    if ports is not None and version < PORTS_SINCE:
        log.info(
            "This process could listen on any free TCP port, also that of a stopped model, not only on %s: "
            "this kernel has Landlock %d; version %d (Linux 6.7) refuses that",
            _ranges(ports),
            version,
            PORTS_SINCE,
        )
    scopes = ABSTRACT_SOCKETS | SIGNALS if version >= SIGNALS_SINCE else 0
    try:
        kernel.restrict(scopes, ports if version >= PORTS_SINCE else None)
    except OSError as error:
        log.warning(
            "This process could send signals to other models on this host, and take the ports of stopped models: "
            "Landlock: %s",
            error.strerror,
        )


def report_confinement(kernel: Kernel | None = None) -> None:
    """Log what engines could do if this kernel cannot confine them (`confine`)."""
    version = (kernel or Kernel()).landlock_version()
    if version < FILES_SINCE:
        log.info(
            "Code in the engine could read the TLS private key and the hub token of this model: this kernel has "
            "Landlock %d; version %d (Linux 5.19) refuses that",
            version,
            FILES_SINCE,
        )


def confine(hidden: str, writable: Iterable[Path], kernel: Kernel | None = None) -> bool:
    """Let this process and all that it starts read every file that it may, but none below `hidden`, and write only
    below the directories `writable`. They cannot trace processes outside, or read their memory, either.

    Returns False if the kernel cannot do this. Raises OSError if it can, but does not. Call it while there is one
    thread. A file or directory that appears beside `hidden` or beside a directory above it later is hidden too.
    """
    kernel = kernel or Kernel()
    version = kernel.landlock_version()
    if version < FILES_SINCE:
        return False
    rights = FILE_RIGHTS[min(version, max(FILE_RIGHTS))]
    allowed = dict.fromkeys(_beside(Path(hidden)), READ_ONLY)
    devices = MAKE_CHARACTER_DEVICE | MAKE_BLOCK_DEVICE
    allowed |= dict.fromkeys(map(str, writable), rights & ~EXECUTE & ~devices)
    kernel.restrict(0, None, Files(rights, allowed))
    return True


def _beside(hidden: Path) -> Iterator[str]:
    """All files and directories that are neither `hidden` nor above it, each or a directory above it.

    Links are left out: the place that they lead to counts.
    """
    for directory in hidden.parents:
        with os.scandir(directory) as entries:
            yield from (
                entry.path for entry in entries if not entry.is_symlink() and not hidden.is_relative_to(entry.path)
            )


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    """Add a rule for a file or for all below a directory; none if the path is gone."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= OF_FILES
            # struct landlock_path_beneath_attr, which is packed.
            rule = struct.pack("=Qi", rights, descriptor)
            _checked(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0))
        finally:
            os.close(descriptor)


def _ranges(ports: Iterable[int]) -> str:
    """Ports in words, without 0, which stands for the ephemeral ports among them."""
    found: list[list[int]] = []
    for port in sorted({*ports} - {0}):
        if found and port == found[-1][-1] + 1:
            found[-1][1:] = [port]
        else:
            found.append([port])
    return ", ".join("-".join(map(str, ends)) for ends in found)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _negative(result: int) -> None:
    """Raise the error of a call of libseccomp, which returns its negative number."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
