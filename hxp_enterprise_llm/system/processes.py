"""The one place that starts other programs. Engines are started in `server_process`, by multiprocessing."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence

from hxp_enterprise_llm.settings.errors import CitadelError

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class ProgramFailed(CitadelError):
    """A program of the host could not be run, or took too long; its exit status is no error here."""

    code = "program-failed"


def run(command: Sequence[str], timeout: float) -> tuple[int, str]:
    """Run a program without a shell and with a minimal environment; its exit status and what it printed.

    `timeout` is in seconds. Raises ProgramFailed if the program is not there or does not end in time.
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
    """The descriptor of a program's standard output while it runs; the program ends with the block.

    Its errors go to our standard error. Raises OSError if the program is not there.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout  # noqa: S101  a pipe was asked for
        try:
            yield process.stdout.fileno()
        finally:
            process.terminate()
