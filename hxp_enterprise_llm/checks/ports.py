"""Whether an instance can listen on its address, and which instances are configured for the same port."""

import re
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.errors import ExitStatus
from hxp_enterprise_llm.settings.keys import EVERY_ADDRESS
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.units import PREFIX, SUFFIX, unit_name
from hxp_enterprise_llm.settings.values import HostSettings, one_port_for_both

OUR_UNIT = re.compile(rf"\b{re.escape(PREFIX)}([^/\n]+){re.escape(SUFFIX)}\b")
"""The unit of an instance in a line of /proc/PID/cgroup."""
PROC = Path("/proc")


def listening(config: ServiceConfigSchema, running: bool = False, proc: Path = PROC) -> list[Finding]:
    """Whether the address belongs to this host, and which process listens on the port now.

    An instance that is `running` may be that process.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
            probe.bind((config.host, 0))
    except OSError as error:
        text = f"HOST={config.host} is not an address of this host ({error.strerror}); `ip addr` lists its addresses"
        return [Finding(config.name, text, status=ExitStatus.UNAVAILABLE)]
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != config.port:
            continue
        if connection.laddr.ip in (config.host, *EVERY_ADDRESS) or config.host in EVERY_ADDRESS:
            if running and _may_be(config.name, connection.pid, proc):
                continue
            text = f"port conflict: PORT={config.port} is taken by {holder(connection.pid, proc)}"
            text += "; stop it or choose another PORT"
            return [Finding(config.name, text, status=ExitStatus.UNAVAILABLE)]
    return []


def holder(pid: int | None, proc: Path = PROC) -> str:
    """Describe a process: by the instance to whose control group it belongs, otherwise by its program."""
    if pid is None:
        return "a process that only root can see"
    try:
        instance = _instance(pid, proc)
        if instance:
            return f"the instance {instance} ({unit_name(instance)}, pid {pid})"
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except (OSError, psutil.Error):
        return f"pid {pid}, which has ended since"


def _may_be(instance: str, pid: int | None, proc: Path) -> bool:
    try:
        return pid is None or _instance(pid, proc) == instance
    except OSError:
        return False


def _instance(pid: int, proc: Path) -> str:
    """The instance to which a process belongs, "" for none. Raises OSError if the process has ended."""
    unit = OUR_UNIT.search((proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
    return unit[1] if unit else ""


def of_monitor(host: HostSettings) -> list[Finding]:
    """Whether the monitor's two ports are the same."""
    conflict = one_port_for_both(host)
    return [Finding("host", conflict)] if conflict else []


def shared(configs: Iterable[ServiceConfigSchema], host: HostSettings) -> list[Finding]:
    """Instances whose port is configured for an earlier instance or for the monitor."""
    found = []
    earlier: dict[int, ServiceConfigSchema] = {}
    for config in configs:
        other = earlier.setdefault(config.port, config)
        if other is not config and (config.host == other.host or {config.host, other.host} & set(EVERY_ADDRESS)):
            text = f"port conflict: PORT={config.port} is also the port of {other.name}; choose another port"
            found.append(Finding(config.name, text))
        for key in ("HEALTH_PORT", "METRICS_PORT"):
            if config.port == host.values[key]:
                found.append(Finding(config.name, f"port conflict: PORT={config.port} is the monitor's {key}"))
    return found
