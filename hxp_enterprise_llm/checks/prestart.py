"""The checks that the main process runs before it starts anything, as the services' user.

This module imports only what every start needs; `start` runs further checks as root.
"""

import logging

from hxp_enterprise_llm.checks import arguments, devices, model, variables
from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.errors import CitadelError, GpuMissing, ModelMissing, SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

log = logging.getLogger(__name__)

OTHER_ERRORS: dict[str, type[CitadelError]] = {error.code: error for error in (ModelMissing, GpuMissing)}
"""Errors with their own code, which is kept if all findings have the same code."""


def of_service(config: ServiceConfigSchema) -> tuple[str, list[Finding]]:
    """The model to pass to vLLM, and the findings about flags, variables, model and GPUs that this user can make."""
    found = [*arguments.findings(config), *variables.findings(config)]
    directory, of_model = model.findings(config)
    return directory, [*found, *of_model, *devices.findings(config)]


def prepare(name: str, root: str = "/", file: str | None = None) -> tuple[ServiceConfigSchema, str]:
    """Read and check the settings of `name`; returns the settings and the model to load.

    `file` is a draft of the settings file to read instead of the file in place.
    Raises SettingsRefused, or ModelMissing or GpuMissing if there are no other errors; logs the warnings.
    """
    before: tuple[SettingsFinding, ...] = ()
    try:
        config, warnings = settings.load(name, root, file)
    except SettingsRefused as error:
        if error.understood is None:
            raise
        # The other settings may have errors too.
        config, warnings, before = error.understood, [], error.findings
    directory, found = of_service(config)
    for warning in [*warnings, *(finding.text for finding in found if not finding.fatal)]:
        log.warning("%s", warning)
    fatal = [finding for finding in found if finding.fatal]
    codes = {finding.code for finding in fatal}
    other = OTHER_ERRORS.get(codes.pop()) if len(codes) == 1 else None
    if other and not before:
        raise other("\n".join(finding.text for finding in fatal))
    if before or fatal:
        own = settings.instance_file(name, root)
        raise SettingsRefused([*before, *(SettingsFinding(own, 0, finding.text) for finding in fatal)], config)
    return config, directory
