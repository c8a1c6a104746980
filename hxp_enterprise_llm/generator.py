"""Settings to systemd: the limits, restart policy, dependencies, devices and credentials of an instance as a drop-in.

Why a generator: `MemoryMax=${X}` cannot work, systemd expands variables in Exec lines only.
Standard library only, see `utils.settings_file`.
"""

import os
import sys
from typing import Any

from hxp_enterprise_llm.utils.settings import HostSettings, InstanceSettings, instance_names, load_host, load_instance
from hxp_enterprise_llm.utils.settings_keys import GIBIBYTE, HOST_KEYS, is_loopback, memory_high

DROP_IN = "50-settings.conf"
MONITOR = "citadel-llm-monitor.service"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  compared with, not bound to
STOP_MARGIN_SEC = 15
"""What TimeoutStopSec= adds to the drain (seconds): vLLM ends in under 1 s once its requests are done."""


WATCHDOG_MARGIN_SEC = 30
"""What WatchdogSec= adds to the longest time without progress that the main process allows its engine (seconds)."""


def unit_name(instance: str) -> str:
    """Name of an instance's unit."""
    return f"citadel-llm@{instance}.service"


def drop_in(settings: InstanceSettings, host: HostSettings) -> str:
    """The text of the drop-in for one instance; refused settings get the host-wide limits."""
    values = settings.values
    unit: list[tuple[str, Any]] = [("SourcePath", settings.file)]
    # A dependency on itself would be a cycle that systemd breaks by dropping a job.
    requires = [unit_name(name) for name in values["REQUIRES"] if name != settings.name]
    after = [unit_name(name) for name in values["AFTER"] if name != settings.name]
    if requires:
        unit.append(("Requires", " ".join(requires)))
    if requires or after:
        unit.append(("After", " ".join(sorted({*requires, *after}))))
    if not is_loopback(str(values["HOST"])):
        # At network.target an address of the host may not be there yet.
        unit += [("Wants", "network-online.target"), ("After", "network-online.target")]
    sections = [("Unit", unit), ("Service", _service(settings, host))]
    lines = [f"# Made by citadel-llm-generator from {settings.file}; edit that and run systemctl daemon-reload."]
    for section, directives in sections:
        lines += [f"[{section}]", *(f"{name}={value}" for name, value in directives)]
    return "\n".join(lines) + "\n"


def _service(settings: InstanceSettings, host: HostSettings) -> list[tuple[str, Any]]:
    values = settings.values

    def number(key: str) -> float:
        return float(values[key])

    memory_max = round(number("MEMORY_LIMIT_GB") * GIBIBYTE)
    service: list[tuple[str, Any]] = [
        ("User", host.values["VLLM_USER"]),
        ("Group", host.values["VLLM_GROUP"]),
        ("MemoryHigh", memory_high(number("MEMORY_LIMIT_GB"))),
        ("MemoryMax", memory_max),
        # 100% is one core.
        ("CPUQuota", f"{max(1, round(number('CPU_CORES') * 100))}%"),
        ("TasksMax", values["MAX_TASKS"]),
        ("Restart", values["RESTART_POLICY"]),
        ("RestartSec", f"{number('RESTART_SEC'):g}s"),
        ("TimeoutStartSec", f"{number('START_TIMEOUT_SEC'):g}s"),
        (
            "WatchdogSec",
            f"{max(number('HANG_TIMEOUT_SEC'), number('START_TIMEOUT_SEC')) + WATCHDOG_MARGIN_SEC:g}s",
        ),
        ("TimeoutStopSec", f"{number('DRAIN_TIMEOUT_SEC') + STOP_MARGIN_SEC:g}s"),
    ]
    if host.values["VLLM_PID_PATH"] != HOST_KEYS["VLLM_PID_PATH"].default:
        below_run = host.values["VLLM_PID_PATH"].removeprefix("/run/")
        service += [("RuntimeDirectory", ""), ("RuntimeDirectory", f"{below_run}/{settings.name}")]
    # A missing one would end the start before the main process could say so.
    if values["API_KEY_FILE"] and os.path.exists(values["API_KEY_FILE"]):
        service.append(("LoadCredential", f"api-key:{values['API_KEY_FILE']}"))
    if values["ALLOW_DOWNLOAD"] or not is_loopback(str(values["HOST"])):
        # The template admits loopback only, and systemd filters both directions with one list.
        service.append(("IPAddressAllow", "any"))
    if values["GPU_DEVICES"]:
        service += [
            ("PrivateDevices", "no"),
            ("DeviceAllow", "char-nvidia rw"),
            ("DeviceAllow", "char-nvidia-uvm rw"),
            ("DeviceAllow", "char-nvidia-caps r"),
        ]
    return service


def monitor_drop_in(host: HostSettings, addresses: set[str]) -> str:
    """The text of the monitor's drop-in: the packet filter for who asks it, and for the models that it asks.

    `addresses` are those that models listen on; the unit itself admits loopback, and if that is all the text is empty.
    """
    server = str(host.values["SERVER_IP"])
    beyond = {address for address in addresses if not is_loopback(address) and address not in EVERYWHERE}
    lines = ["# Made by citadel-llm-generator from the settings of the host and of all models."]
    if is_loopback(server) and not beyond:
        return ""
    if not is_loopback(server):
        lines += ["[Unit]", "Wants=network-online.target", "After=network-online.target"]
        beyond = {"any"}
    lines += ["[Service]", *(f"IPAddressAllow={address}" for address in sorted(beyond))]
    return "\n".join(lines) + "\n"


def _write(directory: str, unit: str, text: str) -> None:
    folder = os.path.join(directory, unit + ".d")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, DROP_IN), "w", encoding="utf-8") as file:
        file.write(text)


def generate(directory: str, root: str = "/") -> None:
    """Write the drop-ins of all instances below `directory`; what is wrong with a file goes to standard error."""
    host = load_host(root)
    faults = list(host.faults)
    addresses = set()
    for name in instance_names(root):
        settings = load_instance(name, host, root)
        faults += settings.faults
        addresses.add(str(settings.values["HOST"]))
        _write(directory, unit_name(name), drop_in(settings, host))
    for_monitor = monitor_drop_in(host, addresses)
    if for_monitor:
        _write(directory, MONITOR, for_monitor)
    for fault in faults:
        print(f"citadel-llm-generator: {fault}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Entry point: the three directories of systemd.generator(7), of which the first counts."""
    if not arguments:
        sys.exit("usage: citadel-llm-generator NORMAL-DIRECTORY [EARLY-DIRECTORY LATE-DIRECTORY]")
    try:
        generate(arguments[0])
    except OSError as error:
        print(f"citadel-llm-generator: {error}", file=sys.stderr)
