"""ExecReload= of a model's unit: asks its main process to take in the settings anew, and hands it root's files.

It runs as root and trusts the settings only: whoever took over the main process gets the files of that instance, which
it has anyway, and can answer what it likes. Nothing is written where the service's user may write.
`citadel-llm key revoke` asks in the same way.
Standard library only, see `utils.settings_file`.
"""

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence

from hxp_enterprise_llm.settings import credential_files
from hxp_enterprise_llm.settings.values import load_host, load_instance

SOCKET = "reload"
"""Name of the main process's socket in the unit's run-time directory."""
TAKEN = b"taken"
LONGEST_ANSWER = 65536
RELOAD, KEYS = b"reload", b"keys"
"""What is asked: to take in the settings anew with the files that they name, or the file of keys and nothing else."""
ANSWER_SEC = 60.0
"""How long the answer may take: a server gets 30 s to take its keys (DOOR_SEC of `server_process`)."""


@contextlib.contextmanager
def short_path(directory: str) -> Iterator[str]:
    """Another name for a directory, since that of a socket in it may have no more than 107 bytes. Raises OSError."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def contents(name: str, root: str = "/") -> dict[str, str]:
    """What is in the files that an instance's settings name now, byte by byte as Latin-1; none if they are refused."""
    files = credential_files.files(load_instance(name, load_host(root), root).values)
    return {key: credential_files.read(file).decode("latin-1") for key, file in files.items()}


def ask(
    run_time: str, pid: int, files: dict[str, str], what: bytes = RELOAD, sent: Callable[[], None] = lambda: None
) -> str:
    """Ask the main process `pid` for `what`; empty if it has taken it up, else why not. It does not raise.

    `sent` is called once no other question can come before this one any more.
    """
    try:
        return _ask(run_time, pid, files, what, sent)
    except TimeoutError:
        return f"the main process has not answered within {ANSWER_SEC:g} s; restart the service"
    except OSError as error:
        return f"the main process cannot be asked ({error.strerror}); restart the service"


def _ask(run_time: str, pid: int, files: dict[str, str], what: bytes, sent: Callable[[], None]) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(ANSWER_SEC)
        with short_path(run_time) as directory:
            channel.connect(f"{directory}/{SOCKET}")
        peer, _, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if peer != pid:
            # The directory is the service's: the name may lead to another program's socket.
            return "the socket is another process's"
        # In memory and without a limit on its length.
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
    return answer.decode("utf-8", "replace") or "the main process ended, or stopped, before it took it up"


def main(arguments: Sequence[str]) -> int:
    """The one argument is the instance; the rest is in the environment that systemd gives an ExecReload=."""
    (name,) = arguments
    with contextlib.ExitStack() as alone:
        # Else keys that are read now could arrive after those that `citadel-llm key revoke` leaves.
        with contextlib.suppress(FileNotFoundError):
            alone.callback(os.close, credential_files.lock())
        run_time, pid = os.environ["RUNTIME_DIRECTORY"], int(os.environ["MAINPID"])
        refused = ask(run_time, pid, contents(name), sent=alone.close)
    if refused:
        print(refused, file=sys.stderr)
    return bool(refused)
