"""The only module that starts other programs, except for servers (`server_process`, through multiprocessing)."""

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence

from hxp_enterprise_llm.settings.errors import CitadelError

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
END_SEC = 10.0
"""How long a program may take to end once its input is closed (seconds)."""


class ProgramFailed(CitadelError):
    """A program could not be run or took too long. A non-zero exit status does not count as a failure."""

    code = "program-failed"


def run(command: Sequence[str], timeout: float) -> tuple[int, str]:
    """Run a program without a shell and with a minimal environment; returns its exit status and output.

    `timeout` is in seconds. Raises ProgramFailed if the program is missing or does not end in time.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise ProgramFailed(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"{' '.join(command)} did not end within {timeout:g} s") from None
    return done.returncode, done.stdout


@contextlib.contextmanager
def output_of(command: Sequence[str]) -> Iterator[int]:
    """The descriptor of a program's standard output; the program is ended when the block is left.

    Its standard error is that of this process. Raises OSError if the program is missing.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout  # noqa: S101  a pipe was asked for
        try:
            yield process.stdout.fileno()
        finally:
            process.terminate()


@contextlib.contextmanager
def conversation(command: Sequence[str], user: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A program with pipes for its standard input and output; its standard error goes to the same pipe as its output.

    The program should end when its standard input is closed: when the block is left, or when this process ends. With
    `user`, it runs with the rights of that user. Raises OSError or ProgramFailed, also if the program does not end.
    """
    account = pwd.getpwnam(user) if user else None
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            # Ctrl-C in a terminal is for this process only.
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=os.getgrouplist(user, account.pw_gid) if account else None,
        )
    except FileNotFoundError:
        raise ProgramFailed(f"{command[0]} is not installed") from None
    assert process.stdin and process.stdout  # noqa: S101  pipes were asked for
    try:
        yield process
    finally:
        # What is not read yet must not keep the program from ending.
        process.stdout.close()
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(END_SEC)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ProgramFailed(f"{command[0]} did not end within {END_SEC:g} s") from None
