"""`citadel-llm check`: all checks of an instance, of the instances beside it and of the host."""

from collections.abc import Iterator, Sequence

from hxp_enterprise_llm.checks import disk, log_files, memory, permissions, start, template
from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.cli import output, strays
from hxp_enterprise_llm.control.service_manager import ServiceManager
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.errors import ExitStatus, SystemdUnreachable


def check(names: Sequence[str], for_program: bool = False) -> ExitStatus:
    """Print the findings, and "good" for each instance without an error; for a program, a JSON list of findings.

    Returns CONFIG if an error is in the settings or the model, FAILED for any other. Raises NoSuchInstance.
    """
    for name in names:
        settings.require(name)
    found: list[Finding] = []
    for finding in _look(names):
        found.append(finding)
        if not for_program:
            output.complain(str(finding))
    if for_program:
        output.as_json([finding._asdict() for finding in found])
    else:
        refused = {finding.instance for finding in found if finding.fatal}
        for name in names or settings.instance_names():
            if name not in refused:
                output.say(f"{name}: good")
    statuses = {finding.status for finding in found if finding.fatal}
    if ExitStatus.CONFIG in statuses:
        return ExitStatus.CONFIG
    return ExitStatus.FAILED if statuses else ExitStatus.DONE


def before_a_start(name: str) -> list[Finding]:
    """Findings about a new instance, and about it and the other instances together."""
    around = (finding for finding in start.neighbours() if finding.instance == name)
    return [*start.findings(name, running=False), *around]


def _look(names: Sequence[str]) -> Iterator[Finding]:
    """Findings about these instances, or all, and about the host."""
    manager = ServiceManager()
    everything = settings.instance_names()
    try:
        services = {service.name: service for service in manager.list_services()}
    except SystemdUnreachable as error:
        yield Finding("host", f"{error}; running and enabled instances are not checked together", fatal=False)
        services = {}
    around = [*start.neighbours(), *disk.findings(), *log_files.findings(), *template.findings()]
    around += permissions.readable_by_monitor("host", settings.host_file())
    together = [service for service in services.values() if service.enabled or service.running or service.name in names]
    around += memory.findings([service.config for service in together if service.config])
    for name in names or everything:
        service = services.get(name)
        yield from start.findings(name, running=bool(service and service.pid))
        yield from (finding for finding in around if finding.instance == name)
    yield from (Finding("host", warning, fatal=False) for warning in strays.warnings())
    yield from (finding for finding in around if finding.instance not in everything)
