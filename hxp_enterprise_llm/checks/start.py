"""Everything that one instance needs to start: for `citadel-llm check`, and for an upgrade before it restarts one."""

from contextlib import suppress

from hxp_enterprise_llm.checks import host
from hxp_enterprise_llm.checks.host import Finding
from hxp_enterprise_llm.checks.prestart import prepare
from hxp_enterprise_llm.engine import model_directory
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.errors import CitadelError, SettingsRefused
from hxp_enterprise_llm.settings.host import ServiceManagerConfig


def findings(name: str, running: bool, file: str | None = None) -> list[Finding]:
    """What is wrong with an instance's settings and model, with what only root can judge of them, and with its port.

    One that is `running` may hold the port itself, also where only root may see who does.
    `file` is a draft of its settings file to read instead of the file in place.
    """
    try:
        config, _ = settings.load(name, file=file)
    except SettingsRefused as error:
        if error.understood is None:
            return _of(name, error)
        config = error.understood
    found = []
    # A file of the host that is refused is among what `prepare` tells.
    with suppress(SettingsRefused):
        manager = ServiceManagerConfig.load()
        found = host.account(name, manager)
        if not found:
            found += host.permissions(config, manager)
            found += host.changeable(config, manager)
    found += host.secrets(config)
    found += [Finding(name, text) for text in model_directory.unseen(config)]
    try:
        prepare(name, file=file)
    except CitadelError as error:
        found += _of(name, error)
    return found + host.port(config, running)


def _of(name: str, error: CitadelError) -> list[Finding]:
    return [Finding(name, line, status=error.exit_status) for line in str(error).splitlines()]
