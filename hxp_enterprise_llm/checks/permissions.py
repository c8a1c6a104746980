"""What the services' user may read and change, by owner and mode: root, who runs this, could access everything."""

import os
import pwd
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hxp_enterprise_llm.checks import arguments
from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.engine.model_directory import CACHE, HIDDEN, MODELS, hidden_in, loaded_files
from hxp_enterprise_llm.protocol import credentials
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.credential_files import KEYS
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def readable(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """The first file among an instance's settings, caches and model files that the services' user cannot read.

    Other checks report missing files.
    """
    user = pwd.getpwnam(manager.user)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    needed = [Path(settings.instance_file(config.name)), *filter(Path.is_dir, [CACHE])]
    with suppress(OSError):
        # Joining "/" and an absolute path gives that path.
        needed += [file.resolve() for file in loaded_files(config, MODELS / config.model) if file.exists()]
    for file in needed:
        closed = readable_by(file, user.pw_uid, groups)
        if closed:
            remedy = f"chmod -R o+rX {closed}"
            if closed in Path(config.model).parents:
                # Never advise opening a directory that may hold other things than models.
                remedy = f"copy the model to {MODELS}"
            text = f"permission denied: {manager.user} may not read {closed}; {remedy}"
            return [Finding(config.name, text)]
    return []


def changeable(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """Files with keys, certificate and token that the services' user could change.

    A compromised model server could then add a key to another instance, or make root read another file.
    """
    user = pwd.getpwnam(manager.user)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    found = []
    for name, file in credentials.files_of(config).items():
        with suppress(OSError):
            place = changeable_by(Path(file), user.pw_uid, groups)
            if place:
                text = f"{KEYS[name]}={file}: {manager.user}, and so a compromised model server, may change {place}"
                remedy = f"chown root {place}; chmod go-w {place}"
                if place.is_dir():
                    remedy = "move the file to a directory that only root can write, such as /etc/citadel-llm"
                found.append(Finding(config.name, f"{text}; {remedy}", fatal=False))
    return found


def of_flags(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """Files in VLLM_ARGS that the services' user cannot read. Other checks report missing and hidden files."""
    user = pwd.getpwnam(manager.user)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    found = []
    for path in map(Path, arguments.paths(config)):
        with suppress(OSError):
            closed = readable_by(path.resolve(strict=True), user.pw_uid, groups)
            if not closed or hidden_in(path, HIDDEN, (MODELS, CACHE / config.name)):
                continue
            # Never advise opening a directory that may hold other things.
            remedy = f"copy {path} beside the model" if closed.is_dir() else f"chmod o+r {closed}"
            text = f"VLLM_ARGS: permission denied: {manager.user} may not read {closed}; {remedy}"
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
