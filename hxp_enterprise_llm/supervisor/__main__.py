"""Main process of a citadel-llm@ unit: `python -m hxp_enterprise_llm.services.core.service_manager MODEL`."""

import argparse
import asyncio
import io
import logging
import os
import sys
import tempfile
from pathlib import Path

from hxp_enterprise_llm.checks.prestart import prepare
from hxp_enterprise_llm.engine import launch
from hxp_enterprise_llm.protocol import credentials
from hxp_enterprise_llm.protocol.state import Phase, StateFile, clear
from hxp_enterprise_llm.settings.errors import CitadelError, ExitStatus
from hxp_enterprise_llm.supervisor.supervisor import Supervisor
from hxp_enterprise_llm.system import event_loop, isolation
from hxp_enterprise_llm.system.journal import JournalHandler, LineFormatter
from hxp_enterprise_llm.system.notify import Notifier

log = logging.getLogger("citadel-llm")

LAST_MESSAGE_SEC = 1.0
"""How long to wait for room in systemd's queue for the last message, which carries the reason of a failure."""


def check(name: str) -> ExitStatus:
    """Check whether instance `name` could start, or restart if it runs; returns the status of the gravest finding."""
    # Imported here: the main process does not need it, and imported modules stay in memory.
    from hxp_enterprise_llm.checks import start

    found = start.findings(name, running=True)
    for finding in found:
        log.log(logging.ERROR if finding.fatal else logging.WARNING, "%s", finding.text)
    statuses = [finding.status for finding in found if finding.fatal]
    if not statuses:
        print(f"{name}: the settings are good, and nothing prevents a start")
    return max(statuses, default=ExitStatus.DONE)


def run_time_directory() -> Path:
    """Return the unit's run-time directory, cleared of an earlier run's files; without systemd, a new directory."""
    given = os.environ.get("RUNTIME_DIRECTORY")
    if given is None:
        return Path(tempfile.mkdtemp(prefix="citadel-llm-"))
    clear(Path(given))
    return Path(given)


def run(name: str, notifier: Notifier, state: StateFile, run_time: Path) -> None:
    """Serve instance `name` until systemd stops it. Raises CitadelError on any other end."""
    notifier.send(STATUS=state.enter(Phase.CHECKING))
    config, model = prepare(name)
    given = credentials.validate(config, credentials.handed_over(config))
    # Before any other process starts.
    isolation.enter(launch.ports(config))
    isolation.report_confinement()
    unit = dict(os.environ)
    pid_file = run_time / "pid"
    pid_file.write_text(f"{os.getpid()}\n", encoding="ascii")
    # The fork server inherits the environment that `fork_server.use` sets, and none of this process's own variables.
    os.environ.clear()
    supervisor = Supervisor(
        config, model, given, notifier, state, reread=lambda: prepare(name), unit=unit, run_time=run_time
    )
    try:
        with asyncio.Runner(loop_factory=event_loop.new) as runner:
            runner.run(supervisor.run())
    finally:
        pid_file.unlink(missing_ok=True)


def main(arguments: list[str]) -> ExitStatus:
    """Parse the command line and run; log an error and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hxp_enterprise_llm.services.core.service_manager",
        description="Main process of a citadel-llm@MODEL.service unit. Administrators use systemctl or citadel-llm.",
    )
    parser.add_argument("model", help="name of the instance: its settings are in /etc/default/citadel-llm-MODEL")
    parser.add_argument("--check", action="store_true", help="check the requirements of a start, without starting")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A line may hold the bytes of a file name that is not UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if "JOURNAL_STREAM" in os.environ:
        handler = JournalHandler(options.model)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    notifier = Notifier.take()
    state = None
    try:
        if options.check:
            return check(options.model)
        run_time = run_time_directory()
        state = StateFile(run_time, os.environ.get("INVOCATION_ID", ""))
        run(options.model, notifier, state, run_time)
    except CitadelError as error:
        for line in str(error).splitlines():
            log.error("%s", line, extra=error.fields)
        if state:
            notifier.send(LAST_MESSAGE_SEC, STATUS=state.enter(Phase.FAILED, str(error)))
        return error.exit_status
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
