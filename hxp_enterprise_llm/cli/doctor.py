"""`citadel-llm doctor`: whether this host can do what the package promises, and how to fix it if not."""

import asyncio
import os
import pwd
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil
from pydantic import ValidationError

from hxp_enterprise_llm.control.systemd import Systemd
from hxp_enterprise_llm.monitoring.health import MonitorHealth, Status
from hxp_enterprise_llm.settings.address import authority
from hxp_enterprise_llm.settings.errors import CitadelError
from hxp_enterprise_llm.settings.keys import DYNAMIC_USER, GIBIBYTE
from hxp_enterprise_llm.settings.units import MONITOR, instance_of, unit_name
from hxp_enterprise_llm.settings.values import host_file, load_host, one_port_for_both
from hxp_enterprise_llm.system.isolation import DYNAMIC_UIDS, FILES_SINCE, PORTS_SINCE, SIGNALS_SINCE, landlock_version
from hxp_enterprise_llm.system.processes import run

OLDEST_SYSTEMD = 252  # that of Debian 12; older versions lack directives of the units
VERIFY_SEC, CONNECT_SEC, ANSWER_SEC = 120.0, 3.0, 5.0
LARGEST_ANSWER = 65536
HUB = "https://huggingface.co"
"""The hub unless HF_ENDPOINT names a mirror (huggingface_hub's own default)."""


class Verdict(StrEnum):
    """How bad a finding is: the package works with a warning, but not with an error."""

    GOOD = "good"
    WARNING = "warning"
    ERROR = "error"


class Diagnosis(NamedTuple):
    """The result of one check of the host."""

    what: str
    verdict: Verdict
    text: str


def systemd() -> Diagnosis:
    """Whether systemd is running, and recent enough."""

    async def ask() -> str:
        async with Systemd() as connection:
            return await connection.version()

    try:
        version = asyncio.run(ask())
    except CitadelError as error:
        return Diagnosis("systemd", Verdict.ERROR, str(error))
    number = re.match(r"\d+", version)
    if number and int(number[0]) >= OLDEST_SYSTEMD:
        return Diagnosis("systemd", Verdict.GOOD, version)
    return Diagnosis("systemd", Verdict.ERROR, f"{version} is older than {OLDEST_SYSTEMD}; upgrade the distribution")


def control_groups(root: Path = Path("/sys/fs/cgroup")) -> Diagnosis:
    """Whether limits work in full."""
    if (root / "cgroup.controllers").exists():
        return Diagnosis("control groups", Verdict.GOOD, "version 2")
    text = "version 1: MemoryHigh has no effect; boot with systemd.unified_cgroup_hierarchy=1"
    return Diagnosis("control groups", Verdict.WARNING, text)


def running_users() -> dict[str, int]:
    """The UID of the main process of each running model. Raises CitadelError."""

    async def ask() -> dict[str, int]:
        async with Systemd() as connection:
            units = await connection.active(unit_name("*"))
            return {unit: (await connection.properties(unit)).get("MainPID", 0) for unit in units}

    found = {}
    for unit, pid in asyncio.run(ask()).items():
        # A unit that is starting or stopping may have no main process.
        if pid and (name := instance_of(unit)):
            with suppress(psutil.NoSuchProcess):
                found[name] = psutil.Process(pid).uids().real
    return found


def users(root: str = "/", running: Callable[[], Mapping[str, int]] = running_users) -> Diagnosis:
    """Which models share a user, and so what the kernel counts for each user.

    A change of VLLM_USER takes effect with the next start of each model, so the processes count, not the setting.
    """
    user = load_host(root).values["VLLM_USER"]
    try:
        found = running()
    except CitadelError as error:
        return Diagnosis("users", Verdict.WARNING, str(error))
    sharing: dict[int, list[str]] = {}
    for name, uid in sorted(found.items()):
        if uid not in DYNAMIC_UIDS:
            sharing.setdefault(uid, []).append(name)
    if user == DYNAMIC_USER:
        old = [name for names in sharing.values() for name in names]
        if not old:
            return Diagnosis("users", Verdict.GOOD, "each model runs as a user of its own")
        text = (
            f"VLLM_USER={DYNAMIC_USER} takes effect with the next start of {', '.join(old)}; "
            f"systemctl daemon-reload && citadel-llm restart {' '.join(old)}"
        )
        return Diagnosis("users", Verdict.WARNING, text)
    several = [
        f"{len(names)} models run as {_user_name(uid)} ({', '.join(names)})"
        for uid, names in sharing.items()
        if len(names) > 1
    ]
    text = f"models run as {user}"
    if several:
        text = (
            f"{'; '.join(several)}, so one can use up what the kernel allows a user; if they do not trust each other, "
            f"write VLLM_USER={DYNAMIC_USER} into {host_file()}, and restart them after systemctl daemon-reload"
        )
    return Diagnosis("users", Verdict.GOOD, text)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def isolation(version: Callable[[], int] = landlock_version, root: str = "/") -> Diagnosis:
    """How far this host isolates models from each other: by the kernel's Landlock, signals also by their users."""
    found = version()
    dynamic = load_host(root).values["VLLM_USER"] == DYNAMIC_USER
    wanted, linux = (PORTS_SINCE, "6.7") if dynamic else (SIGNALS_SINCE, "6.12")
    if found >= wanted:
        text = f"models cannot read or signal each other (Landlock {found})"
        return Diagnosis("isolation", Verdict.GOOD, text)
    can = [] if dynamic else ["end each other"]
    can += ["listen on the port of a stopped model"] if found < PORTS_SINCE else []
    text = (
        f"models cannot read each other, but can {' and '.join(can)}: the kernel has Landlock {found}; version "
        f"{wanted} (Linux {linux}) prevents that; install a newer kernel, such as the distribution's backport"
    )
    if found < FILES_SINCE:
        text += f"; code in an engine can read its model's TLS private key and hub token before version {FILES_SINCE}"
    return Diagnosis("isolation", Verdict.WARNING, text)


def gpu(driver: Path = Path("/proc/driver/nvidia/version")) -> Diagnosis:
    """Which GPU driver is loaded, if any."""
    if not driver.exists():
        return Diagnosis("GPU driver", Verdict.GOOD, "none; models run on the CPU")
    return Diagnosis("GPU driver", Verdict.GOOD, driver.read_text(encoding="utf-8").splitlines()[0])


def health(url: str) -> bytes:
    """The answer of a URL of this host, whatever its status, up to LARGEST_ANSWER bytes. Raises OSError."""
    try:
        # The environment's proxies are for other hosts.
        with httpx.stream("GET", url, timeout=ANSWER_SEC, trust_env=False) as answer:
            return next(answer.iter_bytes(LARGEST_ANSWER), b"")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error)) from error


def monitor(root: str = "/", ask: Callable[[str], bytes] = health) -> Diagnosis:
    """Whether the settings let the monitor serve health and metrics, and whether the monitor reports itself healthy.

    `ask` returns the answer of a URL.
    """
    host = load_host(root)
    errors = [str(finding) for finding in host.findings if finding.fatal] or [*filter(None, [one_port_for_both(host)])]
    if errors:
        return Diagnosis("monitor", Verdict.ERROR, "; ".join(errors))
    url = f"http://{authority(host.values['SERVER_IP'], host.values['HEALTH_PORT'])}/health"
    try:
        found = MonitorHealth.model_validate_json(ask(url))
    except OSError as error:
        return Diagnosis("monitor", Verdict.WARNING, f"{url} does not answer ({error}); systemctl status {MONITOR}")
    except ValidationError:
        text = f"{url} is answered by another program; systemctl status {MONITOR}"
        return Diagnosis("monitor", Verdict.WARNING, text)
    if found.reason or found.status is not Status.HEALTHY:
        return Diagnosis("monitor", Verdict.WARNING, found.reason or found.status)
    return Diagnosis("monitor", Verdict.GOOD, f"{url} answers, version {found.version}")


def package() -> Diagnosis:
    """Whether the package's files are as installed; edited settings do not count."""
    try:
        _, said = run(["dpkg", "--verify", "citadel-llm"], VERIFY_SEC)
    except CitadelError as error:
        return Diagnosis("package", Verdict.WARNING, str(error))
    changed = [line for line in said.splitlines() if " c /etc/" not in line]
    if not changed:
        return Diagnosis("package", Verdict.GOOD, "all files are as shipped")
    text = f"{len(changed)} files differ, the first: {changed[0].split()[-1]}; apt reinstall citadel-llm"
    return Diagnosis("package", Verdict.ERROR, text)


def hub() -> Diagnosis:
    """Whether models can be downloaded."""
    named = os.environ.get("HF_ENDPOINT") or HUB
    try:
        endpoint = urlsplit(named)
        host, port = endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80)
    except ValueError as error:
        return Diagnosis("model hub", Verdict.WARNING, f"HF_ENDPOINT={named} is no address: {error}; correct it")
    try:
        socket.create_connection((host, port), CONNECT_SEC).close()
    except OSError as error:
        text = f"{host} cannot be reached ({error}); copy models to the host, or name a mirror with HF_ENDPOINT"
        return Diagnosis("model hub", Verdict.WARNING, text)
    return Diagnosis("model hub", Verdict.GOOD, f"{host} answers")


def clock(mark: Path = Path("/run/systemd/timesync/synchronized")) -> Diagnosis:
    """Whether systemd-timesyncd has set the clock."""
    if mark.exists():
        return Diagnosis("clock", Verdict.GOOD, "synchronised")
    text = "not set by systemd-timesyncd; without another time service, TLS and log times may be off"
    return Diagnosis("clock", Verdict.WARNING, text)


def memory() -> Diagnosis:
    """How much memory the host has, and whether the kernel may swap models out."""
    total, swap = psutil.virtual_memory().total / GIBIBYTE, psutil.swap_memory().total / GIBIBYTE
    text = f"{total:.1f} GB, swap {swap:.1f} GB"
    if not swap:
        return Diagnosis("memory", Verdict.GOOD, text)
    return Diagnosis("memory", Verdict.WARNING, f"{text}: a model that is swapped out answers slowly")


LOOKS: tuple[Callable[[], Diagnosis], ...] = (
    systemd, control_groups, isolation, users, gpu, memory, clock, monitor, hub, package,
)  # fmt: skip
