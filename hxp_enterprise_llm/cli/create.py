"""`citadel-llm create`: writes the settings file of a new instance, completely or not at all."""

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import click
import psutil

from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted, SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding, quoted, shown
from hxp_enterprise_llm.settings.keys import is_instance_name
from hxp_enterprise_llm.settings.values import instance_file, instance_names, load_host, load_instance

FIRST_PORT = 11400


def free_port(root: str = "/") -> int:
    """The first port from 11400 that no settings file has and on which no process listens."""
    host = load_host(root)
    taken = {load_instance(name, host, root).values["PORT"] for name in instance_names(root)}
    taken |= {host.values["HEALTH_PORT"], host.values["METRICS_PORT"]}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            taken.add(connection.laddr.port)
    return next(port for port in range(FIRST_PORT, 65536) if port not in taken)


def values(model: str, port: int | None, others: Sequence[tuple[str, str]], root: str = "/") -> dict[str, str]:
    """The settings of a new instance from the options --model, --port and --set, with a free port if none is given.

    Raises UsageError for a key that is given twice.
    """
    given = [("MODEL", model), *([] if port is None else [("PORT", str(port))]), *others]
    keys = [key for key, _ in given]
    twice = next((key for key in keys if keys.count(key) > 1), "")
    if twice:
        option = {"MODEL": "--model", "PORT": "--port"}.get(twice, "--set")
        raise click.UsageError(f"{twice} is given twice, by {option} and by --set; write it once")
    return {"MODEL": model} | ({} if "PORT" in keys else {"PORT": str(free_port(root))}) | dict(given)


def create(name: str, settings: dict[str, str], root: str = "/") -> str:
    """Write the settings file of a new instance and return its path.

    Raises CitadelError if the instance exists, SettingsRefused if its port is that of another instance or a value is
    not allowed; then no file is left.
    """
    if not is_instance_name(name):
        config.load(name, root)  # raises with the rule
    file = Path(instance_file(name, root))
    if os.path.lexists(file):
        raise CitadelError(f"the instance {name} already exists: {file}; edit the file, or choose another name")
    host = load_host(root)
    for key in ("HEALTH_PORT", "METRICS_PORT"):
        if str(host.values[key]) == settings["PORT"]:
            raise _refused(f"PORT={settings['PORT']} is the monitor's {key}; omit --port to use a free port")
    for other in instance_names(root):
        if str(load_instance(other, host, root).values["PORT"]) == settings["PORT"]:
            raise _refused(f"PORT={settings['PORT']} is the port of {other}; omit --port to use a free port")
    lines = [_line(key, value) for key, value in settings.items()]
    # On the same file system as the target, for the link; because of the suffix it does not count as an instance.
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    try:
        draft.write_text("\n".join([f"# Settings of citadel-llm@{name}", *lines, ""]), encoding="utf-8")
    except PermissionError:
        raise NotPermitted(f"only root can write in {file.parent}; run the command with sudo") from None
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CitadelError(f"{file}: {error.strerror}") from None
    try:
        draft.chmod(0o644)
        _check(draft, name, root)
        # A link instead of a rename: it fails if another process has created the instance in the meantime.
        os.link(draft, file)
    except FileExistsError:
        raise CitadelError(f"the instance {name} already exists: {file}") from None
    finally:
        draft.unlink()
    return str(file)


def _line(key: str, value: str) -> str:
    """The line of a settings file that sets a key. Raises SettingsRefused if no line can."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise _refused(f"{shown(repr(key))} is not a key: write letters, digits and _, and no digit first")
    try:
        return f"{key}={quoted(value)}"
    except ValueError as error:
        raise _refused(f"{key}={shown(value)} is refused: {error}") from None


def _refused(text: str) -> SettingsRefused:
    """An error of the new settings, which are in no file."""
    return SettingsRefused([SettingsFinding("", 0, text)])


def _check(draft: Path, name: str, root: str) -> None:
    """Raises SettingsRefused if the draft, as the file of `name`, would be refused."""
    try:
        config.load(name, root, file=str(draft))
    except SettingsRefused as error:
        own = instance_file(name, root)
        raise SettingsRefused(
            [finding._replace(file="", line=0) if finding.file == own else finding for finding in error.findings]
        ) from None
