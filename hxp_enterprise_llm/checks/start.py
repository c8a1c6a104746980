"""All checks of an instance before a start: for `citadel-llm check`, and for an upgrade before a restart.

Each subject has a module of its own beside this one.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from hxp_enterprise_llm.checks import account, dependencies, permissions, ports, secrets
from hxp_enterprise_llm.checks.finding import Finding, of_error
from hxp_enterprise_llm.checks.prestart import of_service
from hxp_enterprise_llm.engine import model_directory
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.errors import ExitStatus, SettingsRefused
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.order import dependencies as known_dependencies
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import load_host

log = logging.getLogger(__name__)


def findings(name: str, running: bool, file: str | None = None) -> list[Finding]:
    """Findings about an instance's settings, model, secrets and port; root, who may read all files, gets more.

    An instance that is `running` may hold the port itself, even if only root can see which process does.
    `file` is a draft of its settings file to read instead of the file in place.
    """
    return guarded(name, lambda: _findings(name, running, file))


def guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a check of instance `name`. An unexpected exception becomes a finding, so other checks go on."""
    try:
        return check()
    except Exception as error:
        log.debug("check of %s", name, exc_info=True)
        text = f"the check failed ({type(error).__name__}: {error}); please report this as a bug"
        return [Finding(name, text, status=ExitStatus.FAILED, code="check-failed")]


def _findings(name: str, running: bool, file: str | None) -> list[Finding]:
    found: list[Finding] = []
    try:
        config, warnings = settings.load(name, file=file)
        found += [Finding(name, str(warning), fatal=False) for warning in warnings]
    except SettingsRefused as error:
        found += of_error(name, error)
        if error.understood is None:
            return found
        config = error.understood
    # `load` has raised the errors of the host's file together with the others.
    with suppress(SettingsRefused):
        manager = ServiceManagerConfig.load()
        accounts = account.findings(name, manager)
        found += accounts or [*permissions.readable(config, manager), *permissions.changeable(config, manager)]
        found += [] if accounts else permissions.of_flags(config, manager)
    found += secrets.findings(config)
    found += [Finding(name, text) for text in model_directory.unseen(config)]
    _, of_itself = of_service(config)
    return [*found, *of_itself, *ports.listening(config, running)]


def neighbours(root: str = "/", drafts: Mapping[str, str] | None = None) -> list[Finding]:
    """Findings about several instances: a shared port, a missing requirement, a dependency cycle.

    `drafts` are files to read for some instances instead of their settings files.
    """
    drafts = drafts or {}
    names = settings.instance_names(root)
    host = load_host(root)
    # Of two instances with one port, the finding is about the draft.
    last = sorted(names, key=lambda name: name in drafts)
    configs = [config for name in last if (config := _understood(name, root, drafts.get(name)))]
    found = [*ports.of_monitor(host), *ports.shared(configs, host)]
    for config in configs:
        found += dependencies.of_instance(config, names)
    after = {name: after for name, (_, after) in known_dependencies(root, drafts).items()}
    return [*found, *dependencies.cycles(names, after)]


def _understood(name: str, root: str, draft: str | None) -> ServiceConfigSchema | None:
    """The settings of an instance without the refused values."""
    try:
        return settings.load(name, root, draft)[0]
    except SettingsRefused as error:
        return error.understood
