"""`citadel-llm key`: the keys that requests to an instance may carry."""

import os
import secrets
from pathlib import Path

from hxp_enterprise_llm.utils import api_keys, config
from hxp_enterprise_llm.utils.api_keys import ApiKey
from hxp_enterprise_llm.utils.errors import CitadelError, NoSuchInstance, NotPermitted

DIRECTORY = Path("/etc/citadel-llm")
LARGEST_BYTES = 1 << 20
"""A file of keys larger than this (systemd's own limit for a credential) is none."""


def file_of(name: str, root: str = "/") -> tuple[Path, bool]:
    """The file of keys of an instance, and whether its settings name it already."""
    if not config.exists(name, root):
        raise NoSuchInstance(f"there is no instance {name!r}; citadel-llm list shows those that there are")
    settings, _ = config.load(name, root)
    if settings.api_key_file:
        return Path(settings.api_key_file), True
    return Path(root, *DIRECTORY.parts[1:], f"{name}.keys"), False


def listed(name: str, root: str = "/") -> list[ApiKey]:
    """The keys of an instance."""
    return _keys(file_of(name, root)[0])


def add(name: str, label: str, root: str = "/") -> tuple[str, bool]:
    """Make a key called `label`; the key, to be shown this once, and whether the settings had to be changed for it.

    Raises CitadelError if there is one of that name.
    """
    file, named = file_of(name, root)
    if any(key.name == label for key in _keys(file)):
        raise CitadelError(f"{name} has a key {label} already; revoke that, or choose another --name")
    key, line = api_keys.new(label)
    _write(file, [*_lines(file), line], 0o600)
    if not named:
        settings = Path(config.instance_file(name, root))
        _write(settings, [*_lines(settings), f"API_KEY_FILE={file}"], settings.stat().st_mode & 0o777)
    return key, not named


def revoke(name: str, label: str, root: str = "/") -> int:
    """Forget the key called `label`; how many are left. Raises CitadelError if there is none of that name."""
    file, _ = file_of(name, root)
    keys = _keys(file)
    if not any(key.name == label for key in keys):
        have = ", ".join(key.name for key in keys if key.name) or "none with a name"
        raise CitadelError(f"{name} has no key {label}; it has: {have}")
    # A line that is not one of ours stays as it is.
    kept = [line for line in _lines(file) if [key.name for key in api_keys.read(line)] != [label]]
    _write(file, kept, 0o600)
    return len(keys) - 1


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NotPermitted(f"{file} can be read by root only; run it with sudo") from None
    except OSError as error:
        raise CitadelError(f"{file}: {error.strerror}") from None
    if len(content) > LARGEST_BYTES:
        raise CitadelError(f"{file} is larger than 1 MB, so it is no file of keys")
    return content.decode("utf-8", "replace").splitlines()


def _keys(file: Path) -> list[ApiKey]:
    try:
        return api_keys.read("\n".join(_lines(file)))
    except ValueError as error:
        raise CitadelError(f"{file}: {error}") from None


def _write(file: Path, lines: list[str], mode: int) -> None:
    """Replace a file, complete or not at all."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, mode)
            stream.write("".join(f"{line}\n" for line in lines))
        draft.rename(file)
    except PermissionError:
        raise NotPermitted(f"{file.parent} can be written by root only; run it with sudo") from None
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CitadelError(f"{file}: {error.strerror}") from None
