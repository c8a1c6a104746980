"""The process that downloads or verifies one model for `citadel-llm pull`: `python -m hxp_enterprise_llm.cli.download`.

It runs without root's rights, in the unit of `sandbox`, and isolates itself from models that run as the same user. It
reads a Job from standard input, writes messages to standard output (`protocol.download`), and ends when standard input
is closed: with the command, however that ends.
"""

import logging
import os
import sys
import threading

from hxp_enterprise_llm.engine.model_directory import MODELS
from hxp_enterprise_llm.protocol.download import LONGEST_TEXT, MOST_NAMES, Done, Failed, Job, Message
from hxp_enterprise_llm.settings.errors import CitadelError
from hxp_enterprise_llm.system import isolation
from hxp_enterprise_llm.system.journal import LineFormatter

INTERRUPTED = 130


def main() -> None:
    """Do the job, and send its result."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Before there is a second thread. A download listens on no port.
    isolation.enter(())
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_command, daemon=True).start()
    os.environ.update(job.environment)
    # Imported here: huggingface_hub reads the variables when it is imported.
    from hxp_enterprise_llm.cli import hub

    # Its own handler would print warnings that the hub sends as they are.
    library = logging.getLogger("huggingface_hub")
    library.handlers.clear()
    library.propagate = True
    try:
        source = hub.Hub(MODELS, job.endpoint, job.token, _tell)
        if job.verify:
            wrong = source.verify(job.repository)[:MOST_NAMES]
        else:
            wrong = []
            source.pull(job.repository)
    except CitadelError as error:
        _tell(Failed(code=error.code, message=str(error)[:LONGEST_TEXT]))
    else:
        _tell(Done(wrong=tuple(wrong)))


def _tell(message: Message) -> None:
    sys.stdout.buffer.write(message.model_dump_json().encode() + b"\n")
    sys.stdout.buffer.flush()


def _end_with_command() -> None:
    # The command sends nothing more, so this waits for the end of the file. Not through sys.stdin, whose lock this
    # thread would hold when the interpreter ends.
    while os.read(sys.stdin.fileno(), 1):
        pass
    # Not by an exception: the main thread may be in a system call for minutes. Partial files stay usable.
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
