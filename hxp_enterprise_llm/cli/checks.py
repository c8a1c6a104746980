"""`citadel-llm check`: every check of one instance, of its neighbours and of the host, and what to do about each."""

from collections.abc import Sequence

import click

from hxp_enterprise_llm.cli import output, strays
from hxp_enterprise_llm.services.core.service_manager import ServiceManager, host_checks
from hxp_enterprise_llm.services.core.service_manager.host_checks import Finding
from hxp_enterprise_llm.services.core.service_manager.prestart import prepare
from hxp_enterprise_llm.services.core.service_manager.service import Service
from hxp_enterprise_llm.utils import config as settings
from hxp_enterprise_llm.utils.errors import CitadelError, ExitStatus, NoSuchInstance, SystemdUnreachable


def check(names: Sequence[str]) -> ExitStatus:
    """Print what is found, "good" for an instance without a finding; the exit status of the worst."""
    for name in names:
        if not settings.exists(name):
            raise NoSuchInstance(f"there is no instance {name!r}; citadel-llm list shows those that there are")
    wanted = list(names) or settings.instance_names()
    manager = ServiceManager()
    try:
        services = {service.name: service for service in manager.list_services()}
    except SystemdUnreachable as error:
        output.complain(f"{error}; what runs and what is enabled is not checked")
        services = {}
    around = [*host_checks.neighbours(), *host_checks.disk()]
    together = [service.config for service in services.values() if service.enabled or service.running]
    around += host_checks.memory([config for config in together if config])
    worst = ExitStatus.DONE
    for name in wanted:
        found = [*_of_one(name, manager, services.get(name)), *(item for item in around if item.instance == name)]
        for finding in found:
            output.complain(str(finding))
            worst = max(worst, finding.status if finding.fatal else ExitStatus.DONE)
        if not any(finding.fatal for finding in found):
            click.echo(f"{name}: good")
    for warning in strays.warnings():
        output.complain(warning)
    for finding in around:
        if finding.instance not in settings.instance_names():
            output.complain(str(finding))
            worst = max(worst, finding.status if finding.fatal else ExitStatus.DONE)
    return worst


def _of_one(name: str, manager: ServiceManager, service: Service | None) -> list[Finding]:
    try:
        config, model = prepare(name)
    except CitadelError as error:
        return [Finding(name, line, status=error.exit_status) for line in str(error).splitlines()]
    found = host_checks.account(name, manager.config)
    if not found:
        found += host_checks.permissions(config, model, manager.config)
    if not (service and service.pid):
        # One that runs holds its port itself.
        found += host_checks.port(config)
    return found
