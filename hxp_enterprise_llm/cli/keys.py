"""`citadel-llm key`: create, list and revoke the API keys of an instance."""

import os
from contextlib import ExitStack
from pathlib import Path

from hxp_enterprise_llm.cli import edit, files
from hxp_enterprise_llm.control.service_manager import ServiceManager
from hxp_enterprise_llm.protocol import reload_request
from hxp_enterprise_llm.settings import api_keys, config, credential_files
from hxp_enterprise_llm.settings.api_keys import ApiKey, KeyKind
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted, SettingsRefused
from hxp_enterprise_llm.settings.keys import HOST_KEYS
from hxp_enterprise_llm.settings.values import read_alone


def file_of(name: str, root: str = "/") -> tuple[Path, bool]:
    """The key file of an instance, and whether its settings name it, even if other settings are refused."""
    config.require(name, root)
    file = config.api_key_file(name, root)
    if file:
        return Path(file), True
    return Path(root, credential_files.DIRECTORY[1:], f"{name}.keys"), False


def listed(name: str, root: str = "/") -> list[ApiKey]:
    """The keys of an instance."""
    return _keys(file_of(name, root)[0])


def add(name: str, label: str, root: str = "/", *, kind: KeyKind = KeyKind.API) -> tuple[str, bool]:
    """Create a key called `label`. Returns the key, which is not stored, and whether the settings were changed.

    Raises CitadelError if a key of that name exists, and for a key for /metrics if the instance has no API key.
    """
    with files.locked(root):
        file, named = file_of(name, root)
        if kind is KeyKind.METRICS and not (named and any(key.kind is KeyKind.API for key in _keys(file))):
            raise CitadelError(
                f"{name} has no API key, and a key for /metrics alone protects nothing; first create an API key: "
                f"citadel-llm key add {name}"
            )
        if named:
            # An instance whose settings file is refused cannot start, so a new key would be of no use.
            config.load(name, root)
            return _new(name, label, kind, file), False
        with edit.draft(name, {"API_KEY_FILE": str(file)}, root) as draft:
            key = _new(name, label, kind, file)
            files.put(draft, Path(config.instance_file(name, root)))
        return key, True


def _new(name: str, label: str, kind: KeyKind, file: Path) -> str:
    if any(key.name == label for key in _keys(file)):
        raise CitadelError(f"{name} already has a key named {label}; revoke it, or choose another --name")
    key, line = api_keys.new(label, kind)
    _write(file, [*_lines(file), line])
    return key


def revoke(name: str, label: str, root: str = "/") -> list[ApiKey]:
    """Remove the key called `label`. Returns the keys left. Raises CitadelError if no key has that name."""
    with files.locked(root):
        file, _ = file_of(name, root)
        keys = _keys(file)
        if not any(key.name == label for key in keys):
            have = ", ".join(key.name for key in keys if key.name)
            have = f"it has: {have}" if have else "no key has a name" if keys else "it has no keys"
            raise CitadelError(f"{name} has no key named {label}; {have}")
        # Other lines, such as comments and keys written by hand, stay.
        _write(file, [line for line in _lines(file) if [key.name for key in api_keys.read(line)] != [label]])
        return _keys(file)


def sharing(name: str, root: str = "/") -> list[str]:
    """The instance, followed by those whose settings name, or may name, the same key file."""
    file = os.path.realpath(file_of(name, root)[0])

    def may_name_it(other: str) -> bool:
        try:
            named = config.api_key_file(other, root)
        except SettingsRefused:
            return True
        return bool(named) and os.path.realpath(str(named)) == file

    return [name, *(other for other in config.instance_names(root) if other != name and may_name_it(other))]


def hand_over(name: str, root: str = "/") -> None:
    """Make the main process of a running instance accept exactly the keys in its file from now on.

    This bypasses systemd, which would wait for the end of a reload in progress. Raises CitadelError if it fails.
    """
    manager = ServiceManager(root=root)
    pid = manager.status(name).pid
    if not pid:
        return
    with ExitStack() as alone:
        alone.enter_context(files.locked(root))
        file, _ = file_of(name, root)
        contents = {credential_files.API_KEY: credential_files.read(str(file)).decode("latin-1")}
        # This works even if other settings of the host are refused.
        key = HOST_KEYS["VLLM_PID_PATH"]
        run_time = f"{read_alone(config.host_file(root), key)[0] or key.default}/{name}"
        refused = reload_request.ask(run_time, pid, contents, reload_request.KEYS, sent=alone.close)
    if refused:
        raise CitadelError(f"{name} still accepts the previous keys, not those in {file}: {refused}")


def _lines(file: Path) -> list[str]:
    try:
        return credential_files.content(str(file)).decode("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NotPermitted(f"{file} is readable by root only; run it with sudo") from None
    except OSError as error:
        raise CitadelError(f"{file}: {error.strerror}") from None


def _keys(file: Path) -> list[ApiKey]:
    try:
        return api_keys.read("\n".join(_lines(file)))
    except ValueError as error:
        raise CitadelError(f"{file}: {error}") from None


def _write(file: Path, lines: list[str]) -> None:
    """Replace a file completely or not at all, even if the power fails."""
    with files.draft(file, "".join(f"{line}\n" for line in lines)) as draft:
        files.put(draft, file)
