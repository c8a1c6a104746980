"""Everything that one instance needs to start: for `citadel-llm check`, and for an upgrade before it restarts one."""

from contextlib import suppress

from hxp_enterprise_llm.services.core.service_manager import engine, host_checks
from hxp_enterprise_llm.services.core.service_manager.config import ServiceManagerConfig
from hxp_enterprise_llm.services.core.service_manager.host_checks import Finding
from hxp_enterprise_llm.services.core.service_manager.prestart import prepare
from hxp_enterprise_llm.utils import config as settings
from hxp_enterprise_llm.utils.errors import CitadelError, SettingsRefused


def findings(name: str, running: bool) -> list[Finding]:
    """What is wrong with an instance's settings and model, with what only root can judge of them, and with its port.

    One that is `running` may hold the port itself, also where only root may see who does.
    """
    try:
        config, _ = settings.load(name)
    except SettingsRefused as error:
        if error.understood is None:
            return _of(name, error)
        config = error.understood
    found = []
    # A file of the host that is refused is among what `prepare` tells.
    with suppress(SettingsRefused):
        manager = ServiceManagerConfig.load()
        found = host_checks.account(name, manager)
        if not found:
            found += host_checks.permissions(config, manager)
            found += host_checks.changeable(config, manager)
    found += host_checks.secrets(config)
    found += [Finding(name, text) for text in engine.unseen(config)]
    try:
        prepare(name)
    except CitadelError as error:
        found += _of(name, error)
    return found + host_checks.port(config, running)


def _of(name: str, error: CitadelError) -> list[Finding]:
    return [Finding(name, line, status=error.exit_status) for line in str(error).splitlines()]
