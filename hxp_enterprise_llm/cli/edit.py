"""`citadel-llm set` and `citadel-llm unset`: change the settings file of an instance.

A change is made in a copy, which is checked as a start would check it and then renamed. python-dotenv edits the copy.
"""

import logging
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from dotenv import set_key, unset_key

from hxp_enterprise_llm.checks import start
from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.cli import files
from hxp_enterprise_llm.control.service import Service
from hxp_enterprise_llm.control.service_manager import ServiceManager
from hxp_enterprise_llm.engine import model_directory
from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.errors import (
    ExitStatus,
    ModelMissing,
    SettingsRefused,
    SystemdUnreachable,
)
from hxp_enterprise_llm.settings.grammar import SettingsFinding, key_of, quoted, read, shown
from hxp_enterprise_llm.settings.keys import GIBIBYTE, INSTANCE_KEYS
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import why_ignored
from hxp_enterprise_llm.supervisor import reload

WORKSPACE = ".citadel-llm-draft"
"""Directory for the copy and for python-dotenv's temporary file, beside the settings, so that a rename stays on one
file system. The name is fixed, so that the next command deletes what a killed command has left."""
NOT_IN_A_SERVER = {"MAX_TASKS", "RESTART_POLICY", "RESTART_SEC", "REQUIRES", "AFTER", "RELOAD_METHOD"}
"""Keys that only systemd or a reload uses; a running server does not depend on them."""
LIMITS = {"MEMORY_LIMIT_GB", "CPU_CORES"}
"""Keys that set a limit of the unit, and from which a new server derives the size of its cache or its threads."""
NOTHING_CHANGED = "nothing changed"
"""Stands in for the file in an error about a new value, which no line of the file has."""
Values = Mapping[str, str | None]
"""New values by key; None removes the line of a key."""


class Effect(StrEnum):
    """When a changed setting takes effect. Partly: the unit's limit at once, the rest with a reload.

    None: an instance does not have this setting.
    """

    NOW = "now"
    PARTLY = "partly"
    RELOAD = "reload"
    RESTART = "restart"
    START = "start"
    NONE = "none"


EFFECTS = {
    Effect.NOW: "in effect",
    Effect.PARTLY: "in effect as a limit; for the KV cache and the threads: citadel-llm reload {name}",
    Effect.RELOAD: "in effect after: citadel-llm reload {name}",
    Effect.RESTART: "in effect after: citadel-llm restart {name}",
    Effect.START: "in effect after the next start: citadel-llm start {name}",
    Effect.NONE: "not in effect, as an instance has no such setting",
}
"""The message of the command for each effect."""


class Change(NamedTuple):
    """A changed settings file: when each changed key takes effect, and warnings about the new settings."""

    file: Path
    effects: dict[str, Effect]
    warnings: list[str]


def change(name: str, values: Values, only_try: bool = False) -> Change:
    """Set and unset keys of an instance; with `only_try`, check the result and leave the file unchanged.

    Raises NoSuchInstance, NotPermitted, or SettingsRefused if the result would be refused; the file is then unchanged.
    """
    config.require(name)
    file = Path(config.instance_file(name))
    with files.locked(), draft(name, values) as made:
        if made.read_bytes() == file.read_bytes():
            return Change(file, {}, [])
        new, _ = config.load(name, file=str(made))
        changed = _changed(file, made, values)
        old, service = _in_place(name), _running(name)
        warnings = _check(new, made, running=service is not None)
        if service:
            check_use(new, service)
        if not only_try:
            files.put(made, file)
    if not only_try:
        with suppress(SystemdUnreachable):
            # Without systemd, as in a chroot, the next boot reads the settings.
            ServiceManager().settings_changed()
    return Change(file, effects(changed, old, new, running=service is not None), warnings)


def _changed(file: Path, made: Path, values: Values) -> Values:
    """Those of `values` whose lines differ between a settings file and its draft."""

    def lines(of: Path, key: str) -> list[str]:
        return [line for line in of.read_text(encoding="utf-8").splitlines() if key_of(line) == key]

    return {key: value for key, value in values.items() if lines(file, key) != lines(made, key)}


def check_use(new: ServiceConfigSchema, service: Service) -> None:
    """Raises SettingsRefused if a running instance uses more than its new limits: systemd applies them at once.

    The memory that systemd reports includes the page cache, so it is an upper bound of what the instance needs.
    """
    too_low = []
    memory, limit = service.memory_bytes or 0, service.memory_limit_bytes
    if memory > new.memory_limit_gb * GIBIBYTE and (limit is None or limit > new.memory_limit_gb * GIBIBYTE):
        too_low.append(f"MEMORY_LIMIT_GB={new.memory_limit_gb:g} is refused: it uses {memory / GIBIBYTE:.2f} GB now")
    tasks, tasks_limit = service.tasks or 0, service.tasks_limit
    if tasks > new.max_tasks and (tasks_limit is None or tasks_limit > new.max_tasks):
        too_low.append(f"MAX_TASKS={new.max_tasks} is refused: it has {tasks} tasks now")
    if too_low:
        advice = f"write more, or stop it first: citadel-llm stop {new.name}"
        raise SettingsRefused([SettingsFinding(NOTHING_CHANGED, 0, f"{text}; {advice}") for text in too_low])


def effects(
    values: Values, old: ServiceConfigSchema | None, new: ServiceConfigSchema, running: bool = True
) -> dict[str, Effect]:
    """When each of the changed `values` takes effect in an instance whose settings were `old` (None if refused)."""
    return {key: _effect(key, old, new, running) for key in values}


def _effect(key: str, old: ServiceConfigSchema | None, new: ServiceConfigSchema, running: bool) -> Effect:
    if why_ignored(key):
        return Effect.NONE
    if not running:
        return Effect.START
    return Effect.NOW if key in NOT_IN_A_SERVER else _effect_in_a_server(key, old, new)


def _effect_in_a_server(key: str, old: ServiceConfigSchema | None, new: ServiceConfigSchema) -> Effect:
    if old is None:
        return Effect.RESTART
    field = key.lower() if key in INSTANCE_KEYS else "environment"
    value = getattr(new, field)
    if value == getattr(old, field):
        return Effect.NOW
    try:
        reload.check(old, old.model_copy(update={field: value}))
    except SettingsRefused:
        return Effect.RESTART
    return Effect.PARTLY if key in LIMITS else Effect.RELOAD


def _in_place(name: str) -> ServiceConfigSchema | None:
    """The settings in the current file, None if they are refused."""
    try:
        return config.load(name)[0]
    except SettingsRefused:
        return None


def _running(name: str) -> Service | None:
    """The state of an instance that has a main process; None if it has none, or if systemd is not running."""
    with suppress(SystemdUnreachable):
        service = ServiceManager().status(name)
        return service if service.pid else None
    return None


def _check(new: ServiceConfigSchema, made: Path, running: bool) -> list[str]:
    """The warnings that a start with the new settings would give. Raises SettingsRefused for new errors.

    If two instances have one port, the check may name the other instance, so errors of all instances count. A model
    that `citadel-llm pull` has yet to download is a warning: pull reads its name from the settings.
    """
    found = _findings(new.name, running, str(made))
    errors = [finding for finding in found if finding.fatal and finding.status is ExitStatus.CONFIG]
    if errors:
        known = {(finding.instance, finding.text) for finding in _findings(new.name, running)}
        known.add((new.name, _to_be_pulled(new)))
        refused = [finding for finding in errors if (finding.instance, finding.text) not in known]
        if refused:
            raise SettingsRefused([_of_the_settings(new.name, finding) for finding in refused])
    return [finding.text for finding in found if finding.instance == new.name]


def _findings(name: str, running: bool, file: str | None = None) -> list[Finding]:
    """The findings about instance `name`, and about all instances together."""
    return [*start.findings(name, running, file), *start.neighbours(drafts={name: file or config.instance_file(name)})]


def _of_the_settings(name: str, finding: Finding) -> SettingsFinding:
    text = finding.text.removeprefix(f"{config.instance_file(name)}: ")
    return SettingsFinding(NOTHING_CHANGED, 0, text if finding.instance == name else f"{finding.instance}: {text}")


def _to_be_pulled(new: ServiceConfigSchema) -> str:
    """What a start reports for a hub id whose model is not on this host; empty if it is."""
    if not new.model.startswith("/"):
        try:
            model_directory.find_model(new)
        except ModelMissing as error:
            return str(error)
    return ""


@contextmanager
def draft(name: str, values: Values, root: str = "/") -> Iterator[Path]:
    """A copy of an instance's settings file with other values, which can replace the file; deleted at the end.

    The caller holds the lock. Raises NoSuchInstance, or SettingsRefused if the new settings are refused.
    """
    config.require(name, root)
    file = Path(config.instance_file(name, root))
    text = read(str(file))
    if not text.whole:
        raise SettingsRefused(text.findings)
    workspace = file.with_name(WORKSPACE)
    with files.failures_of(file):
        shutil.rmtree(workspace, ignore_errors=True)
        try:
            workspace.mkdir(mode=0o700)
            before = file.read_bytes().decode()
            after = _edited(before, values, workspace / "edited")
            if _others(before, values) != _others(after, values):
                # If a quote is not closed, or a line contains CR, python-dotenv takes several lines for one.
                raise SettingsRefused([finding for finding in text.findings if finding.fatal])
            made = workspace / file.name
            files.write(made, after, file)
            _load(name, root, made, before, values)
            yield made
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


def _errors(name: str, root: str) -> tuple[SettingsFinding, ...]:
    """The errors of the settings in place."""
    try:
        config.load(name, root)
    except SettingsRefused as error:
        return error.findings
    return ()


def _load(name: str, root: str, made: Path, before: str, values: Values) -> None:
    """Read a draft. Raises SettingsRefused, in which errors of other lines have their place in the file.

    `before` is the text of the file.
    """
    try:
        config.load(name, root, str(made))
    except SettingsRefused as error:
        file = config.instance_file(name, root)
        known = _errors(name, root)
        new, old = made.read_bytes().decode().split("\n"), before.split("\n")
        found = []
        for finding in error.findings:
            line = new[finding.line - 1] if finding.line else ""
            if finding.file != file or (not line and finding in known):
                found.append(finding)
            elif not line or key_of(line) in values:
                found.append(finding._replace(file=NOTHING_CHANGED, line=0))
            else:
                found.append(finding._replace(line=old.index(line) + 1))
        raise SettingsRefused(found) from None


def _edited(text: str, values: Values, copy: Path) -> str:
    """`text` with other values."""
    # python-dotenv drops the blank lines before a line that it changes. It keeps comments.
    blank = f"# {secrets.token_hex(8)}"
    # python-dotenv warns about lines that it cannot parse; our own check reports them.
    logging.getLogger("dotenv").setLevel(logging.ERROR)
    lines = text.removesuffix("\n").split("\n")
    copy.write_text("".join(f"{line if line.strip() else blank + line}\n" for line in lines), encoding="utf-8")
    for key, value in values.items():
        if value is None:
            unset_key(copy, key)
            continue
        try:
            set_key(copy, key, quoted(value), quote_mode="never")
        except ValueError as error:
            raise SettingsRefused(
                [SettingsFinding(NOTHING_CHANGED, 0, f"{shown(key)}={shown(value)} is refused: {error}")]
            ) from None
    return copy.read_text(encoding="utf-8").replace(blank, "")


def _others(text: str, values: Values) -> list[str]:
    """The lines of a settings file that a change of `values` must not touch."""
    return [line for line in text.removesuffix("\n").split("\n") if key_of(line) not in values]
