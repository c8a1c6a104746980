"""Main process of a citadel-llm@ unit: `python -m hxp_enterprise_llm.services.core.service_manager MODEL`."""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path

from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.services.core.service_manager import engine
from hxp_enterprise_llm.services.core.service_manager.journal import JournalHandler
from hxp_enterprise_llm.services.core.service_manager.notify import Notifier
from hxp_enterprise_llm.services.core.service_manager.prestart import prepare
from hxp_enterprise_llm.services.core.service_manager.supervisor import Supervisor
from hxp_enterprise_llm.utils import api_keys
from hxp_enterprise_llm.utils.errors import CitadelError, ExitStatus, SettingsRefused
from hxp_enterprise_llm.utils.settings import instance_file
from hxp_enterprise_llm.utils.settings_file import Fault

log = logging.getLogger("citadel-llm")


def check(name: str) -> None:
    """Check instance `name` as a start would, and print what it would serve. A port it may hold itself is not tried."""
    config, model = prepare(name)
    print(f"{name}: settings are good; would serve {model} as {config.api_name} on {config.host}:{config.port}")


def key_digests(config: ServiceConfigSchema) -> list[str]:
    """Digests of the keys that systemd hands over as a credential; none if the settings name no file.

    Raises SettingsRefused rather than serve everybody if they name one and there is no key.
    """
    if not config.api_key_file:
        return []
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    reason = "is missing or new to systemd: make sure it is there, then daemon-reload"
    if directory:
        reason = f"holds no key; make one with citadel-llm key add {config.name}"
        try:
            keys = api_keys.read(Path(directory, "api-key").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            keys = []
        except ValueError as error:
            keys, reason = [], str(error)
        if keys:
            return [key.digest for key in keys]
    raise SettingsRefused([Fault(instance_file(config.name), 0, f"API_KEY_FILE={config.api_key_file} {reason}")])


def run(name: str, notifier: Notifier) -> None:
    """Serve instance `name` until it is told to stop."""
    notifier.send(STATUS="Checking the settings")
    config, model = prepare(name)
    keys = key_digests(config)
    environment = engine.environment(config)
    run_time = Path(os.environ.get("RUNTIME_DIRECTORY", tempfile.gettempdir()))
    pid_file = run_time / "pid"
    pid_file.write_text(f"{os.getpid()}\n", encoding="ascii")
    # The fork server and what comes from it inherit this, and nothing of how this process was started.
    os.environ.clear()
    os.environ.update(environment)
    try:
        asyncio.run(Supervisor(config, model, keys, notifier, reread=lambda: prepare(name), run_time=run_time).run())
    finally:
        pid_file.unlink(missing_ok=True)


def main(arguments: list[str]) -> ExitStatus:
    """Parse the command line, run, and turn an error into its exit status and its last words."""
    parser = argparse.ArgumentParser(
        prog="python -m hxp_enterprise_llm.services.core.service_manager",
        description="Main process of a citadel-llm@MODEL.service unit. Administrators use systemctl or citadel-llm.",
    )
    parser.add_argument("model", help="name of the instance: its settings are in /etc/default/citadel-llm-MODEL")
    parser.add_argument("--check", action="store_true", help="check settings and model, start nothing")
    options = parser.parse_args(arguments)
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if "JOURNAL_STREAM" in os.environ:
        handler = JournalHandler(options.model)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    notifier = Notifier.take()
    try:
        if options.check:
            check(options.model)
        else:
            run(options.model, notifier)
    except CitadelError as error:
        for line in str(error).splitlines():
            log.error("%s", line, extra=error.fields)
        notifier.send(STATUS=f"Failed: {error}")
        return error.exit_status
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
