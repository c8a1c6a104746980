"""From settings files to typed values: the host's file and an instance's file, resolved key by key.

Standard library only, see `grammar`. `config` turns the result into the schema, for programs that run or watch an
instance. This module has what the schema lacks: the values of the host, the origin of each value (`show`, `--explain`),
and the values of refused files (the generator, and `create` for a free port).
"""

import os
from typing import Any, NamedTuple, Self

from hxp_enterprise_llm.settings.grammar import MAX_FINDINGS, Entry, SettingsFinding, SettingsText, read, shown
from hxp_enterprise_llm.settings.keys import (
    HOST_KEYS,
    INSTANCE_KEYS,
    PASSED_THROUGH,
    Key,
    allowed,
    is_instance_name,
)

DIRECTORY = "etc/default"
HOST_FILE = "citadel-llm"
PREFIX = "citadel-llm-"
BUILT_IN = "built-in"
MODELS = "/var/lib/citadel-llm/models"
"""The directory of models. A model that MODEL names by its hub id is in the subdirectory of that name."""


class HostSettings(NamedTuple):
    """The value of every host-wide key, its origin (the file, or built-in), and the errors of the file."""

    values: dict[str, Any]
    origins: dict[str, str]
    findings: list[SettingsFinding]


class HostLabels(NamedTuple):
    """Names of this host for people: CITADEL_ENV and SERVER_HOSTNAME. Nothing depends on them."""

    environment: str
    hostname: str

    @classmethod
    def of(cls, host: HostSettings) -> Self:
        """The labels in the settings of the host."""
        return cls(host.values["CITADEL_ENV"], host.values["SERVER_HOSTNAME"])

    def __str__(self) -> str:
        return f"{self.hostname} ({self.environment})"


class InstanceSettings(NamedTuple):
    """The value of every key of one instance, its origin (a file, or built-in), the environment of the engine, and the
    errors of the file.

    `understood` has the values even if the file is refused, and None for each refused key.
    """

    name: str
    file: str
    values: dict[str, Any]
    origins: dict[str, str]
    environment: dict[str, str]
    findings: list[SettingsFinding]
    understood: dict[str, Any]

    @property
    def refused(self) -> bool:
        """Whether a start with these settings fails."""
        return any(finding.fatal for finding in self.findings)


def host_file(root: str = "/") -> str:
    return os.path.join(root, DIRECTORY, HOST_FILE)


def instance_file(name: str, root: str = "/") -> str:
    return os.path.join(root, DIRECTORY, PREFIX + name)


def instance_names(root: str = "/") -> list[str]:
    """The names of all instances with a settings file, sorted."""
    try:
        with os.scandir(os.path.join(root, DIRECTORY)) as files:
            names = [file.name.removeprefix(PREFIX) for file in files if file.name.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if is_instance_name(name))


def built_in_host() -> HostSettings:
    """The settings of a host without a settings file."""
    return HostSettings({key.name: _default(key) for key in HOST_KEYS.values()}, dict.fromkeys(HOST_KEYS, BUILT_IN), [])


def load_host(root: str = "/") -> HostSettings:
    """Read the host-wide file. If it is missing or refused, the values are the built-in ones."""
    file = host_file(root)
    text = read(file) if os.path.lexists(file) else SettingsText({}, [])
    findings = list(text.findings)
    values = {key.name: _value(key, text.entries.get(key.name), file, findings) for key in HOST_KEYS.values()}
    findings += _unknown_keys(file, text.entries, HOST_KEYS)
    origins = {key: _origin(file, text.entries.get(key)) for key in HOST_KEYS}
    if any(finding.fatal for finding in findings):
        return built_in_host()._replace(findings=findings)
    return HostSettings(values, origins, findings)


def one_port_for_both(host: HostSettings) -> str:
    """The error, with file and line, if HEALTH_PORT and METRICS_PORT are the same port; else empty."""
    if host.values["HEALTH_PORT"] != host.values["METRICS_PORT"]:
        return ""
    key, other = "METRICS_PORT", "HEALTH_PORT"
    if host.origins[key] == BUILT_IN:
        key, other = other, key
    return (
        f"{host.origins[key]}: {key}={host.values[key]} is also the {other} ({host.origins[other]}); the monitor "
        "serves only health there until they differ"
    )


def load_instance(name: str, host: HostSettings, root: str = "/", file: str | None = None) -> InstanceSettings:
    """Read the file of one instance on top of the host's settings.

    No content raises an error: if the file is refused, every value is the host's or the built-in one.
    """
    file = file or instance_file(name, root)
    text = read(file)
    findings = list(text.findings)
    all_read = not any(finding.fatal for finding in text.findings)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in INSTANCE_KEYS.values():
        entry = text.entries.get(key.name)
        if key.host_key and not (entry and entry.value):
            values[key.name], origins[key.name] = host.values[key.host_key], host.origins[key.host_key]
        else:
            values[key.name], origins[key.name] = _value(key, entry, file, findings), _origin(file, entry)
        if key.required and not (entry and entry.value) and all_read:
            findings.append(SettingsFinding(file, 0, f"{key.name} is missing; write {key.name}= and {allowed(key)}"))
    environment = {
        entry.key: entry.value
        for entry in text.entries.values()
        if entry.key not in INSTANCE_KEYS and entry.key not in HOST_KEYS and entry.key.startswith(PASSED_THROUGH)
    }
    findings += _unknown_keys(file, text.entries, INSTANCE_KEYS, PASSED_THROUGH)
    settings = InstanceSettings(name, file, values, origins, environment, findings, values)
    if settings.refused:
        settings = settings._replace(understood=dict(values))
        for key in INSTANCE_KEYS.values():
            values[key.name] = host.values[key.host_key] if key.host_key else _default(key)
            origins[key.name] = host.origins[key.host_key] if key.host_key else BUILT_IN
    return settings


def read_alone(file: str, key: Key) -> tuple[Any, list[SettingsFinding]]:
    """The value of one key of a settings file, whatever errors its other lines and other files have.

    If the line of this key is refused, or may be among the refused lines, there are errors and no value.
    """
    text = read(file)
    entry = text.entries.get(key.name)
    findings = [] if entry and text.whole else [finding for finding in text.findings if finding.fatal]
    return (None if findings else _value(key, entry, file, findings)), findings


def _value(key: Key, entry: Entry | None, file: str, findings: list[SettingsFinding]) -> Any:
    if entry is None or not entry.value:  # KEY= means the same as no line
        return _default(key)
    try:
        given = key.parse(entry.value)
    except ValueError as error:
        findings.append(SettingsFinding(file, entry.line, f"{key.name}={shown(entry.value)} is refused: write {error}"))
        return None
    value = key.raised(given)
    if value != given:
        text = f"{key.name}={entry.value} is too short and counts as {value:g}"
        findings.append(SettingsFinding(file, entry.line, text, fatal=False))
    return value


def _origin(file: str, entry: Entry | None) -> str:
    return f"{file}:{entry.line}" if entry and entry.value else BUILT_IN


def _default(key: Key) -> Any:
    return None if key.default is None else key.parse(key.default)


def why_ignored(key: str) -> str:
    """Why a line with `key` has no effect in the file of an instance; empty if it has one."""
    return _why_ignored(key, INSTANCE_KEYS, PASSED_THROUGH)


def _why_ignored(key: str, known: dict[str, Key], prefixes: tuple[str, ...], suggest: bool = True) -> str:
    if key in known:
        return ""
    if prefixes and key in HOST_KEYS:
        return f"{key} is a host setting and is ignored here; set it in /{DIRECTORY}/{HOST_FILE}"
    if prefixes and key.startswith(prefixes):
        return ""
    advice = ""
    if suggest:
        # Imported here: rarely needed, and the start-up time of the generator counts at boot.
        import difflib

        near = difflib.get_close_matches(key, known, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
    return f"{shown(key)} is not a setting and is ignored{advice}"


def _unknown_keys(
    file: str, entries: dict[str, Entry], known: dict[str, Key], prefixes: tuple[str, ...] = ()
) -> list[SettingsFinding]:
    findings: list[SettingsFinding] = []
    for entry in entries.values():
        # A file with more unknown keys is no settings file, and each suggestion takes as long as ten lines.
        why = _why_ignored(entry.key, known, prefixes, suggest=len(findings) < 10)
        if why:
            findings.append(SettingsFinding(file, entry.line, why, fatal=False))
        if len(findings) >= MAX_FINDINGS:
            break
    return findings
