"""Main process of citadel-llm-log@.service: `python -m hxp_enterprise_llm.log_files INSTANCE`."""

import os
import signal
import sys
import time
from pathlib import Path

from hxp_enterprise_llm.log_files.follower import LogFile, follow, journal_command
from hxp_enterprise_llm.settings.keys import is_instance_name
from hxp_enterprise_llm.settings.values import load_host
from hxp_enterprise_llm.system.processes import output_of

STATE = "/var/lib/citadel-llm/log"
FAILED_STATUS, USAGE_STATUS = 1, 2


def main(arguments: list[str]) -> int:
    """Write the log file of one instance until SIGTERM; returns the exit status."""
    if len(arguments) != 1 or not is_instance_name(arguments[0]):
        print("usage: python -m hxp_enterprise_llm.log_files INSTANCE", file=sys.stderr)
        return USAGE_STATUS
    (instance,) = arguments
    path = Path(load_host().values["VLLM_LOG_PATH"], f"{instance}.log")
    file = LogFile(path, Path(os.environ.get("STATE_DIRECTORY", STATE), f"{instance}.cursor"))
    stop, stopped = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGTERM, lambda *_: os.write(stopped, b"x"))
    try:
        with output_of(journal_command(instance, file.position(time.time()))) as source:
            if follow(source, stop, file):
                return 0
    except OSError as error:
        print(f"{path}: {error.strerror}; no line is lost, the journal has them", file=sys.stderr)
        return FAILED_STATUS
    print("journalctl ended", file=sys.stderr)
    return FAILED_STATUS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
