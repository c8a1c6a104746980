"""The `citadel-llm` command. Only this and the unit's main process exit."""

import errno
import io
import logging
import os
import sys

OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of writing to a pipe, a disk or a terminal (write(2)); an error of opening a file has the file's name."""


def main() -> None:
    """Entry point: run the command, and turn an error into a message and an exit status."""
    # pydantic looks for plugins in the metadata of all 150 distributions of the environment, which would double the run
    # time of a command; there are none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from hxp_enterprise_llm.cli.commands import cli
    from hxp_enterprise_llm.cli.output import complain
    from hxp_enterprise_llm.settings.errors import CitadelError, ExitStatus
    from hxp_enterprise_llm.system.journal import LineFormatter

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A line may hold the bytes of a file name or an argument that is not UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("citadel-llm: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        cli(prog_name="citadel-llm")
    except CitadelError as error:
        complain(str(error))
        sys.exit(error.exit_status)
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_ERRORS:
            raise
        # The interpreter flushes standard output once more at its end, and would print a message of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that closes the pipe wants no more output.
        if error.errno != errno.EPIPE:
            complain(f"the output cannot be written: {error.strerror}")
        sys.exit(ExitStatus.FAILED)
