"""What the services' user may read and change, by owner and mode: root, who runs this, could access everything."""

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple, Self

from hxp_enterprise_llm.checks import arguments
from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.engine.model_directory import CACHE, HIDDEN, MODELS, hidden_in, loaded_files
from hxp_enterprise_llm.protocol import credentials
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.credential_files import KEYS
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

NO_USER = -1
"""A UID that owns no file."""


class Reader(NamedTuple):
    """The user and groups whose access is checked; `name` for people."""

    name: str
    uid: int
    groups: Sequence[int]

    @classmethod
    def of(cls, manager: ServiceManagerConfig) -> Self:
        """The services' user. With VLLM_USER=dynamic, users that own none of the files, and their group."""
        if manager.dynamic_user:
            return cls(f"the group {manager.group}", NO_USER, [grp.getgrnam(manager.group).gr_gid])
        user = pwd.getpwnam(manager.user)
        return cls(manager.user, user.pw_uid, os.getgrouplist(user.pw_name, user.pw_gid))


def readable(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """The first file among an instance's settings, caches and model files that the services' user cannot read.

    For a settings file that only the monitor cannot read, a warning. Other checks report missing files.
    """
    own = Path(settings.instance_file(config.name))
    reader = Reader.of(manager)
    if readable_by(own, reader.uid, reader.groups) == own:
        return [Finding(config.name, f"permission denied: {reader.name} may not read {own}; chmod 644 {own}")]
    warnings = readable_by_monitor(config.name, str(own))
    needed = [own, *filter(Path.is_dir, [CACHE])]
    with suppress(OSError):
        # Joining "/" and an absolute path gives that path.
        needed += [file.resolve() for file in loaded_files(config, MODELS / config.model) if file.exists()]
    closed = [place for file in needed if (place := readable_by(file, reader.uid, reader.groups))]
    if not closed:
        return warnings
    remedy = opening(closed)
    if closed[0] in Path(config.model).parents:
        # Never advise opening a directory that may hold other things than models.
        remedy = f"copy the model to {MODELS}"
    text = f"permission denied: {reader.name} may not read {closed[0]}; {remedy}"
    return [*warnings, Finding(config.name, text)]


def opening(closed: Sequence[Path]) -> str:
    """A command that lets every user read the first of these places, and the files among them beside it.

    The command is not recursive: the directory of a model may hold other things, such as lost+found of a disk.
    """
    first = closed[0]
    if first.is_dir():
        return f"chmod a+rx {quote(str(first))}"
    beside = {file for file in closed if file.parent == first.parent and not file.is_dir()}
    if len(beside) == 1:
        return f"chmod a+r {quote(str(first))}"
    directory = quote(str(first.parent))
    patterns = {f"{directory}/*{quote(file.suffix)}" if file.suffix else quote(str(file)) for file in beside}
    return f"chmod a+r {' '.join(sorted(patterns))}"


def readable_by_monitor(instance: str, file: str) -> list[Finding]:
    """A warning if the monitor cannot read a settings file of `instance`, or of the "host".

    The monitor has a user and a group of its own, so group agent0 is not enough.
    """
    with suppress(OSError):
        if not Path(file).stat().st_mode & stat.S_IROTH:
            return [Finding(instance, f"the monitor cannot read {file}; chmod 644 {file}", fatal=False)]
    return []


def changeable(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """Files with keys, certificate and token that the services' user could change.

    A compromised model server could then add a key to another instance, or make root read another file.
    """
    reader = Reader.of(manager)
    found = []
    for name, file in credentials.files_of(config).items():
        with suppress(OSError):
            place = changeable_by(Path(file), reader.uid, reader.groups)
            if place:
                text = f"{KEYS[name]}={file}: {reader.name}, and so a compromised model server, may change {place}"
                remedy = f"chown root {place}; chmod go-w {place}"
                if place.is_dir():
                    remedy = "move the file to a directory that only root can write, such as /etc/citadel-llm"
                found.append(Finding(config.name, f"{text}; {remedy}", fatal=False))
    return found


def of_flags(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """Files in VLLM_ARGS that the services' user cannot read. Other checks report missing and hidden files."""
    reader = Reader.of(manager)
    found = []
    for path in map(Path, arguments.paths(config)):
        with suppress(OSError):
            real = path.resolve(strict=True)
            if real.is_relative_to((CACHE / config.name).resolve()):
                continue  # systemd gives the cache to the user of the unit
            closed = readable_by(real, reader.uid, reader.groups)
            if not closed or hidden_in(path, HIDDEN, (MODELS, CACHE / config.name)):
                continue
            # Never advise opening a directory that may hold other things.
            remedy = f"copy {path} beside the model" if closed.is_dir() else f"chmod o+r {closed}"
            text = f"VLLM_ARGS: permission denied: {reader.name} may not read {closed}; {remedy}"
            found.append(Finding(config.name, text))
    return found


def readable_by(path: Path, uid: int, groups: Iterable[int]) -> Path | None:
    """The first of `path` and its parent directories that a user may not read or enter; None if there is none."""
    groups = set(groups)
    for place in [*reversed(path.parents), path]:
        status = place.stat()
        wanted = stat.S_IXOTH if place.is_dir() else stat.S_IROTH
        if status.st_uid == uid:
            wanted <<= 6
        elif status.st_gid in groups:
            wanted <<= 3
        if not status.st_mode & wanted:
            return place
    return None


def changeable_by(path: Path, uid: int, groups: Iterable[int]) -> Path | None:
    """The first of `path` and its parent directories that a user may change; None if there is none.

    This includes the parents of every link on the way. Raises OSError.
    """
    groups, real = set(groups), path.resolve()
    for place in [*reversed(path.parents), *reversed(real.parents), real]:
        status = place.stat()
        bits = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid in groups else 0)
        # In a directory with the sticky bit, a user cannot replace another user's file.
        held = place != real and status.st_mode & stat.S_ISVTX
        if status.st_uid == uid or (status.st_mode & bits and not held):
            return place
    return None
