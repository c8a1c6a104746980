"""What a start needs of the host, and of the instances beside it: accounts, permissions, ports, memory, disk, order.

`prestart` checks one instance as the service itself can; these see more as root. `start_check` asks both.
"""

import grp
import os
import pwd
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from hxp_enterprise_llm.engine.model_directory import CACHE, MODELS
from hxp_enterprise_llm.protocol import credentials
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.credential_files import KEYS, read
from hxp_enterprise_llm.settings.errors import DependencyCycle, ExitStatus, SettingsRefused
from hxp_enterprise_llm.settings.host import ServiceManagerConfig
from hxp_enterprise_llm.settings.keys import EVERY_ADDRESS, GIBIBYTE, HOST_KEYS
from hxp_enterprise_llm.settings.order import dependencies, order
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.units import unit_name
from hxp_enterprise_llm.settings.values import load_host, one_port_for_both

CACHE_SPACE_BYTES = GIBIBYTE
"""Free disk below which the check warns; a round figure, not a measured one."""
RENEW_DAYS, DAY_SEC = 14, 86400.0
"""How long before its end a certificate is warned of; those who renew by themselves do so a month before."""
TEMPLATE = "/lib/systemd/system/citadel-llm@.service"
"""The template of the units, where the package installs it."""
OUR_UNIT = re.compile(r"\bcitadel-llm@([^/\n]+)\.service\b")
"""The unit of an instance in a line of /proc/PID/cgroup."""


LOGROTATE_RULE = "/etc/logrotate.d/citadel-llm"


class Finding(NamedTuple):
    """One thing that a check found. A start with a fatal one ends with `status`."""

    instance: str
    text: str
    fatal: bool = True
    status: ExitStatus = ExitStatus.CONFIG

    def __str__(self) -> str:
        return f"{self.instance}: {self.text}" + ("" if self.fatal else " (a warning)")


def readable_by(path: Path, uid: int, groups: Iterable[int]) -> Path | None:
    """The first of `path` and the directories above it that a user may not read or enter; None if all is well.

    By the mode bits alone: a root that asks is allowed everything and so cannot just try.
    """
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
    """The first of the directories above `path`, and of it, that a user may change, and with it what is there for root.

    By owner and mode bits, also where a link leads. None if there is none. Raises OSError.
    """
    groups, real = set(groups), path.resolve()
    for place in [*reversed(path.parents), *reversed(real.parents), real]:
        status = place.stat()
        bits = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid in groups else 0)
        # In a directory with the sticky bit, nobody takes the place of another's file.
        held = place != real and status.st_mode & stat.S_ISVTX
        if status.st_uid == uid or (status.st_mode & bits and not held):
            return place
    return None


def account(name: str, manager: ServiceManagerConfig) -> list[Finding]:
    """Whether the user and group of the services exist."""
    found = []
    for kind, account_name, look_up in (("user", manager.user, pwd.getpwnam), ("group", manager.group, grp.getgrnam)):
        try:
            look_up(account_name)
        except KeyError:
            text = f"the {kind} {account_name} does not exist; create it (adduser --system --group {account_name})"
            found.append(Finding(name, text))
    return found


def permissions(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """Whether the services' user can read the settings and the model and reach the caches, as far as they are there."""
    user = pwd.getpwnam(manager.user)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    needed = [Path(settings.instance_file(config.name)), *filter(Path.is_dir, [CACHE])]
    with suppress(OSError):
        # "/" on an absolute path is that path. A link that leads nowhere is for the check of the model itself.
        needed += [file.resolve() for file in sorted((MODELS / config.model).iterdir()) if file.exists()]
    for file in needed:
        closed = readable_by(file, user.pw_uid, groups)
        if closed:
            remedy = f"chmod -R o+rX {closed}"
            if closed in Path(config.model).parents:
                # Never advise to open a directory that may hold other things than models.
                remedy = f"copy the model to {MODELS}"
            text = f"permission denied: {manager.user} may not read {closed}; {remedy}"
            return [Finding(config.name, text)]
    return []


def changeable(config: ServiceConfigSchema, manager: ServiceManagerConfig) -> list[Finding]:
    """Whether the files of keys, certificate and token are safe from the services' user, as far as this one can see.

    A stolen model server could let itself in at its neighbours, or have root take another file for theirs.
    """
    user = pwd.getpwnam(manager.user)
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    found = []
    for name, file in credentials.files_of(config).items():
        with suppress(OSError):
            place = changeable_by(Path(file), user.pw_uid, groups)
            if place:
                text = f"{KEYS[name]}={file}: {manager.user}, so a stolen model server too, may change {place}"
                remedy = f"chown root {place}; chmod go-w {place}"
                if place.is_dir():
                    remedy = "move the file to a directory that is root's alone, such as /etc/citadel-llm"
                found.append(Finding(config.name, f"{text}; {remedy}", fatal=False))
    return found


def secrets(config: ServiceConfigSchema) -> list[Finding]:
    """Whether the files of keys, certificate and token are good, and not for all to read; of some only root can say."""
    found, contents = [], {}
    named = credentials.files_of(config)
    for name, file in named.items():
        what = f"{KEYS[name]}={file}"
        try:
            mode = Path(file).stat().st_mode
        except PermissionError:
            continue
        except OSError as error:
            found.append(Finding(config.name, f"{what}: {error.strerror}; put it there"))
            continue
        if not stat.S_ISREG(mode):
            found.append(Finding(config.name, f"{what} is not a regular file"))
            continue
        if mode & stat.S_IROTH and name != "tls-cert":
            found.append(Finding(config.name, f"{what} can be read by all; chmod 600 {file}", fatal=False))
        if os.access(file, os.R_OK):
            contents[name] = read(file).decode("latin-1")
    if contents.keys() != named.keys():
        return found
    try:
        given = credentials.judge(config, contents)
    except SettingsRefused as error:
        return [*found, *(Finding(config.name, fault.text) for fault in error.faults)]
    left = (given.expires - time.time()) / DAY_SEC
    if given.certificate and left < RENEW_DAYS:
        text = f"TLS_CERT_FILE={config.tls_cert_file} expires in {left:.0f} days; renew it, then citadel-llm reload"
        found.append(Finding(config.name, f"{text} {config.name}", fatal=False))
    return found


def port(config: ServiceConfigSchema, running: bool = False) -> list[Finding]:
    """Whether the address is one of this host, and whether something else listens on the port now, and what."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
            probe.bind((config.host, 0))
    except OSError as error:
        text = f"HOST={config.host} is not an address of this host ({error.strerror}); `ip addr` shows those that are"
        return [Finding(config.name, text, status=ExitStatus.UNAVAILABLE)]
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != config.port:
            continue
        if connection.laddr.ip in (config.host, *EVERY_ADDRESS) or config.host in EVERY_ADDRESS:
            if running and _may_be(config.name, connection.pid):
                continue
            holder = _holder(connection.pid)
            text = f"port conflict: PORT={config.port} is taken by {holder}; stop that or choose another PORT"
            return [Finding(config.name, text, status=ExitStatus.UNAVAILABLE)]
    return []


def _holder(pid: int | None, proc: Path = Path("/proc")) -> str:
    """Who a process is: the instance, by the control group that systemd has put it in, or else its program."""
    if pid is None:
        return "a process that only root may see"
    try:
        instance = _instance(pid, proc)
        if instance:
            return f"the instance {instance} ({unit_name(instance)}, pid {pid})"
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except (OSError, psutil.Error):
        return f"pid {pid}, which has ended since"


def _may_be(instance: str, pid: int | None) -> bool:
    try:
        return pid is None or _instance(pid) == instance
    except OSError:
        return False


def _instance(pid: int, proc: Path = Path("/proc")) -> str:
    """The instance that a process belongs to, "" for none. Raises OSError if it has ended."""
    unit = OUR_UNIT.search((proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
    return unit[1] if unit else ""


def memory(configs: Iterable[ServiceConfigSchema]) -> list[Finding]:
    """Whether the limits of instances that would run together fit the host; a warning, for limits may overlap."""
    configs = list(configs)
    total = psutil.virtual_memory().total / GIBIBYTE
    promised = sum(config.memory_limit_gb for config in configs)
    if promised <= total:
        return []
    names = ", ".join(f"{config.name} {config.memory_limit_gb:g}" for config in configs)
    text = (
        f"limits exceed the host: MEMORY_LIMIT_GB of all that run or start at boot is {promised:g} ({names}), the host "
        f"has {total:.1f}; lower one, or disable one"
    )
    return [Finding("host", text, fatal=False)]


def template(root: str = "/") -> list[Finding]:
    """Whether VLLM_SERVICE_TEMPLATE_PATH has the link to the template of the units; a warning."""
    directory = load_host(root).values["VLLM_SERVICE_TEMPLATE_PATH"]
    link = f"{directory}/{unit_name('')}"
    if Path(root, link[1:]).exists():
        return []
    text = (
        f"VLLM_SERVICE_TEMPLATE_PATH={directory}: there is no link {link} to the template; "
        f"ln -s {TEMPLATE} {link}, or correct VLLM_SERVICE_TEMPLATE_PATH"
    )
    return [Finding("host", text, fatal=False)]


def disk(cache: Path = CACHE) -> list[Finding]:
    """Whether there is room for the engine's caches."""
    if not cache.is_dir():
        return [Finding("host", f"{cache} is missing; systemd-tmpfiles --create makes it again")]
    free = shutil.disk_usage(cache).free
    if free >= CACHE_SPACE_BYTES:
        return []
    return [Finding("host", f"{cache} has only {free / 1e6:.0f} MB free; make room for caches", fatal=False)]


def log_files(root: str = "/", logrotate: Path = Path("/usr/sbin/logrotate")) -> list[Finding]:
    """Whether the log files of LOG_TO_FILE=yes are rotated: the package's rule for `logrotate` names one directory."""
    host = load_host(root).values
    if not host["LOG_TO_FILE"]:
        return []
    found = []
    path, rotated = Path(host["VLLM_LOG_PATH"]), str(HOST_KEYS["VLLM_LOG_PATH"].default)
    if path != Path(rotated):
        text = f"VLLM_LOG_PATH={path} is not {rotated}: change the directory in {LOGROTATE_RULE} too, or its files grow"
        found.append(Finding("host", text, fatal=False))
    if not logrotate.exists():
        text = "LOG_TO_FILE=yes, but logrotate is not installed: log files grow until the disk is full; install it"
        found.append(Finding("host", text, fatal=False))
    return found


def neighbours(root: str = "/", drafts: Mapping[str, str] | None = None) -> list[Finding]:
    """What is wrong between instances: one port for two or for the monitor, one named that is not there, a circle.

    `drafts` are files to read for some instances instead of their settings files.
    """
    drafts = drafts or {}
    found: list[Finding] = []
    names = settings.instance_names(root)
    ports: dict[int, ServiceConfigSchema] = {}
    known = dependencies(root, drafts)
    host = load_host(root)
    if conflict := one_port_for_both(host):
        found.append(Finding("host", conflict))
    monitor = {key: host.values[key] for key in ("HEALTH_PORT", "METRICS_PORT")}
    for name in names:
        try:
            config, _ = settings.load(name, root, drafts.get(name))
        except SettingsRefused as error:
            if error.understood is None:
                continue
            config = error.understood
        other = ports.setdefault(config.port, config)
        if other is not config and (config.host == other.host or {config.host, other.host} & set(EVERY_ADDRESS)):
            text = f"port conflict: PORT={config.port} is that of {other.name} too; only one of them can run"
            found.append(Finding(name, text))
        for key, port_of_monitor in monitor.items():
            if config.port == port_of_monitor:
                found.append(Finding(name, f"port conflict: PORT={config.port} is the {key} of the monitor"))
        for earlier in sorted({*config.after} - {*names, *config.requires}):
            text = f"AFTER={earlier}: there is no such instance; this one will not wait for it"
            found.append(Finding(name, text, fatal=False))
        for needed in config.requires:
            if needed not in names:
                found.append(
                    Finding(name, f"REQUIRES={needed}: there is no such instance; there are: {', '.join(names)}")
                )
        if name in {*config.requires, *config.after}:
            found.append(Finding(name, "it requires or follows itself, which is ignored", fatal=False))
    try:
        order(names, {name: after for name, (_, after) in known.items()})
    except DependencyCycle as error:
        found += [Finding(name, str(error)) for name in sorted(set(error.circle))]
    return found
