"""Shared by the tests of the monitor on a booted machine: its addresses and its answers."""

import json
from typing import Any

from .conftest import Host

UNIT = "citadel-llm-monitor"
HEALTH = "http://127.0.0.1:8000/health"
METRICS = "http://127.0.0.1:9090/metrics"
STORE = "/var/lib/citadel-llm/monitor/monitor.sqlite"


def get(host: Host, path: str = "/services") -> tuple[int, Any]:
    """Status and JSON of a path of the health port."""
    said = host.machine.output("curl", "-s", "--path-as-is", "--max-time", "10", "-w", "\n%{http_code}", HEALTH + path)
    content, _, status = said.rpartition("\n")
    return int(status), json.loads(content)


def one(host: Host, name: str) -> Any:
    """The monitor's entry for one instance."""
    return get(host, f"/services/{name}")[1]


def sample(host: Host, name: str) -> float:
    """The value of a sample of the metrics."""
    lines = host.machine.output("curl", "-s", "--max-time", "10", METRICS).splitlines()
    return float(next(line for line in lines if line.startswith(f"citadel_llm_service_{name} ")).rpartition(" ")[2])


def said(host: Host) -> str:
    """The monitor's part of the journal."""
    host.machine.run("journalctl", "--sync")
    return host.machine.output("journalctl", "-u", UNIT, "-o", "cat")


def resident(host: Host) -> float:
    """Memory of the monitor (10**6 bytes)."""
    pid = host.machine.show(UNIT, "MainPID")["MainPID"]
    return int(host.machine.output("awk", "/VmRSS/ {print $2}", f"/proc/{pid}/status")) * 1024 / 1e6
