"""ExecReload= of a model's unit: sends the main process a reload request with the content of root's credential files.

It runs as root and trusts only the settings. A compromised main process gets only the files of its own instance, which
it has already, and its answer is only text. No file is written where the service's user may write.
`citadel-llm key revoke` sends the same kind of request.
It uses the standard library only, see `settings.grammar`.
"""

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from hxp_enterprise_llm.settings import credential_files
from hxp_enterprise_llm.settings.values import load_host, load_instance

SOCKET = "reload"
"""Name of the main process's socket in the run-time directory of the unit."""
TAKEN = b"taken"
LONGEST_ANSWER = 65536
RELOAD, KEYS = b"reload", b"keys"
"""The requests: read the settings again, with the credential files that they name; or replace the API keys only."""
ROOT, NOBODY = 0, 65534
"""systemd 257 keeps the files of a dynamic user as nobody (65534) and maps their owner at the mount."""
ANSWER_SEC = 60.0
"""How long the answer may take (seconds): the main process gives a server 30 s to take its keys."""


@contextlib.contextmanager
def short_path(directory: str) -> Iterator[str]:
    """A short name for a directory, because the path of a socket may have at most 107 bytes. Raises OSError."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def contents(name: str, root: str = "/") -> dict[str, str]:
    """Content of the credential files that an instance's settings name, as Latin-1; {} if the settings are refused."""
    files = credential_files.files(load_instance(name, load_host(root), root).values)
    return {key: credential_files.read(file).decode("latin-1") for key, file in files.items()}


def ask(
    run_time: str, pid: int, files: dict[str, str], what: bytes = RELOAD, sent: Callable[[], None] = lambda: None
) -> str:
    """Send the request `what` to the main process `pid`; returns "" if it accepts, else the reason. Raises nothing.

    `sent` is called as soon as no later request can overtake this one.
    """
    try:
        return _ask(run_time, pid, files, what, sent)
    except TimeoutError:
        return f"the main process has not answered within {ANSWER_SEC:g} s; restart the service"
    except OSError as error:
        return f"the main process cannot be reached ({error.strerror}); restart the service"


def _ask(run_time: str, pid: int, files: dict[str, str], what: bytes, sent: Callable[[], None]) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(ANSWER_SEC)
        with short_path(run_time) as directory:
            channel.connect(f"{directory}/{SOCKET}")
        peer, _, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if peer != pid:
            # The service's user owns the directory, so another program may have created the socket.
            return "the socket belongs to another process"
        # A file in memory has no limit on its length, unlike a message.
        message = os.memfd_create("reload", os.MFD_CLOEXEC)
        try:
            with open(message, "w", encoding="utf-8", closefd=False) as stream:
                json.dump(files, stream)
            os.lseek(message, 0, os.SEEK_SET)
            socket.send_fds(channel, [what], [message])
        finally:
            os.close(message)
        sent()
        answer = channel.recv(LONGEST_ANSWER)
    if answer == TAKEN:
        return ""
    return answer.decode("utf-8", "replace") or "the main process ended before it accepted the request"


def _chown(directory: int, name: str, user: int, group: int) -> None:
    os.chown(name, user, group, dir_fd=directory, follow_symlinks=False)


def give_back(
    user: int,
    group: int,
    root: str,
    directories: Iterable[str],
    chown: Callable[[int, str, int, int], None] = _chown,
) -> None:
    """Give directories, with all in them, to the user and group of the main process, except those that root owns.

    `root` leads to the files as the main process sees them. Before ExecReload=, systemd gives the directories of the
    unit to the user that the settings name now. After a change of VLLM_USER, the running processes have another user
    until the restart.
    """
    for directory in directories:
        owner, seen = os.stat(directory).st_uid, os.stat(root + directory).st_uid
        if owner == ROOT or seen == user:
            continue
        to = (user, group) if seen == owner else (NOBODY, NOBODY)
        # A directory that is too deep, or changes meanwhile, must not prevent the reload.
        with contextlib.suppress(OSError, RecursionError):
            for _, folders, files, descriptor in os.fwalk(os.path.realpath(directory)):
                for name in (".", *folders, *files):
                    chown(descriptor, name, *to)


def main(arguments: Sequence[str]) -> int:
    """Reload the instance named by the only argument; systemd passes the rest in the environment of ExecReload=."""
    (name,) = arguments
    with contextlib.ExitStack() as alone:
        # Without the lock, keys that are read now could arrive after a later `citadel-llm key revoke`.
        with contextlib.suppress(FileNotFoundError):
            alone.callback(os.close, credential_files.lock())
        run_time, pid = os.environ["RUNTIME_DIRECTORY"], int(os.environ["MAINPID"])
        # If the main process has ended, the request says so.
        with contextlib.suppress(OSError):
            process = os.stat(f"/proc/{pid}")
            directories = run_time, os.environ["CACHE_DIRECTORY"]
            give_back(process.st_uid, process.st_gid, f"/proc/{pid}/root", directories)
        refused = ask(run_time, pid, contents(name), sent=alone.close)
    if refused:
        print(refused, file=sys.stderr)
    return bool(refused)
