"""From settings files to the schema: where programs get the configuration of an instance."""

import os

from pydantic import ValidationError

from hxp_enterprise_llm.settings.errors import NoSuchInstance, SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding, shown
from hxp_enterprise_llm.settings.keys import INSTANCE_KEYS, is_instance_name
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import (
    host_file,
    instance_file,
    instance_names,
    load_host,
    load_instance,
    read_alone,
)

REQUIRED = {key.name.lower() for key in INSTANCE_KEYS.values() if key.required}
DEFAULTS = {name: field.default for name, field in ServiceConfigSchema.model_fields.items()}
__all__ = ["api_key_file", "exists", "host_file", "instance_file", "instance_names", "load", "require"]


def load(name: str, root: str = "/", file: str | None = None) -> tuple[ServiceConfigSchema, list[SettingsFinding]]:
    """Read the settings of instance `name` and the warnings about them.

    `file` is a draft of its settings file to read instead; messages name the file that the draft is for.
    Raises SettingsRefused with every error of the host's file and the instance's file.
    """
    if not is_instance_name(name):
        raise SettingsRefused(
            [
                SettingsFinding(
                    "",
                    0,
                    f"'{shown(name)}' is not an instance name: use up to 64 letters, digits, . _ and -, "
                    "a letter or digit first",
                )
            ]
        )
    host = load_host(root)
    settings = load_instance(name, host, root, file)
    own = instance_file(name, root)
    findings = [*host.findings, *(finding._replace(file=own) for finding in settings.findings)]
    # The schema has the same defaults, and the monitor keeps the values of every instance in memory.
    values = {key.lower(): value for key, value in settings.understood.items() if value is not None}
    values = {key: value for key, value in values.items() if value != DEFAULTS[key]}
    fatal = [finding for finding in findings if finding.fatal]
    if not fatal:
        try:
            return ServiceConfigSchema(name=name, environment=settings.environment, **values), findings
        except ValidationError as error:
            fatal = [
                SettingsFinding(own, 0, sentence)
                for problem in error.errors()
                for sentence in problem["msg"].removeprefix("Value error, ").splitlines()
            ]
    understood = None
    if values.keys() >= REQUIRED:
        understood = ServiceConfigSchema.model_construct(name=name, environment=settings.environment, **values)
        # A contradiction with a refused value may disappear once that value is corrected.
        refused = [key for key in INSTANCE_KEYS if any(finding.text.startswith(f"{key}=") for finding in fatal)]
        fatal += [
            SettingsFinding(own, 0, sentence)
            for sentence in understood.contradictions()
            if not any(f"{key}=" in sentence for key in refused) and sentence not in {finding.text for finding in fatal}
        ]
    raise SettingsRefused(fatal, understood)


def api_key_file(name: str, root: str = "/") -> str | None:
    """The API_KEY_FILE of instance `name`, even if other keys of it are refused: an API key can then be revoked.

    Raises SettingsRefused if API_KEY_FILE itself is, or may be, refused.
    """
    file: str | None
    file, findings = read_alone(instance_file(name, root), INSTANCE_KEYS["API_KEY_FILE"])
    if findings:
        raise SettingsRefused(findings)
    return file


def exists(name: str, root: str = "/") -> bool:
    """Whether instance `name` has a settings file."""
    return is_instance_name(name) and os.path.lexists(instance_file(name, root))


def require(name: str, root: str = "/") -> None:
    """Raises NoSuchInstance if instance `name` has no settings file."""
    if not exists(name, root):
        raise NoSuchInstance(name)
