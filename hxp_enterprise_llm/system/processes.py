"""The only module that starts other programs, except for servers (`server_process`, through multiprocessing)."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence

from hxp_enterprise_llm.settings.errors import CitadelError

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


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
