"""Settings to systemd: the limits, restart policy, dependencies, devices and credentials of an instance as a drop-in.

Why a generator: `MemoryMax=${X}` cannot work, systemd expands variables in Exec lines only.
It runs as root at boot on files that may hold anything: docs/decisions/0009 says what it promises then.
Standard library only, see `utils.settings_file`.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hxp_enterprise_llm.settings import credential_files
from hxp_enterprise_llm.settings.keys import EVERY_ADDRESS, GIBIBYTE, HOST_KEYS, is_loopback, memory_high
from hxp_enterprise_llm.settings.units import LOG_TEMPLATE, MONITOR, log_unit_name, unit_name
from hxp_enterprise_llm.settings.values import (
    MODELS,
    HostSettings,
    InstanceSettings,
    built_in_host,
    instance_file,
    instance_names,
    load_host,
    load_instance,
)

DROP_IN = "50-settings.conf"
STOP_MARGIN_SEC = 15
"""What TimeoutStopSec= adds to the drain (seconds): vLLM ends in under 1 s once its requests are done."""


DEEPEST_MOUNT, LONGEST_UNIT = 16, 249
"""Directories of a path that may be mounts, and characters of a unit's name without .mount (systemd.unit(5))."""
MAX_INSTANCES = 2048
"""Instances that get a drop-in; with the bounds of a settings file this bounds time, memory and /run."""

_SAFE = re.compile(r"[A-Za-z0-9 ._/:@%+,=-]*")
_SAFE_UNITS = re.compile(r"(?:[A-Za-z0-9 ._:@-]|\\x[0-9a-f]{2})*")
"""Names of units keep the backslash that escapes a character of a path."""
Report = Callable[[object], None]
"""Takes one sentence about what is wrong."""


class Directive(NamedTuple):
    """One line of a drop-in, and the keys of the settings (with spaces between) that it comes from."""

    name: str
    value: object
    keys: str = ""

    def __str__(self) -> str:
        """The line as systemd reads it back: a `%` is one, not the start of a specifier.

        Raises ValueError for a character that no rule of a key lets through: then one of the rules is wrong.
        """
        value = str(self.value)
        if not (_SAFE_UNITS if self.name == "After" else _SAFE).fullmatch(value):
            raise ValueError(f"{self.name}= would hold a character that has a meaning to systemd")
        # CPUQuota= is a percentage, made here of a number, and knows no specifiers.
        return f"{self.name}={value if self.name == 'CPUQuota' else value.replace('%', '%%')}"


Sections = dict[str, list[Directive]]


def sections(settings: InstanceSettings, host: HostSettings) -> Sections:
    """What the drop-in of one instance says; refused settings get the host-wide limits."""
    values = settings.values
    unit = [Directive("SourcePath", settings.file)]
    # A dependency on itself would be a cycle that systemd breaks by dropping a job.
    requires = [unit_name(name) for name in values["REQUIRES"] if name != settings.name]
    after = [unit_name(name) for name in values["AFTER"] if name != settings.name]
    if requires:
        unit.append(Directive("Requires", " ".join(requires), "REQUIRES"))
    if requires or after:
        unit.append(Directive("After", " ".join(sorted({*requires, *after})), "REQUIRES AFTER"))
    if not is_loopback(str(values["HOST"])):
        # At network.target an address of the host may not be there yet.
        unit += [
            Directive("Wants", "network-online.target", "HOST"),
            Directive("After", "network-online.target", "HOST"),
        ]
    if host.values["LOG_TO_FILE"]:
        # After it: at a shutdown the log file gets the last lines of the instance.
        follower = log_unit_name(settings.name)
        unit += [Directive("Wants", follower, "LOG_TO_FILE"), Directive("After", follower, "LOG_TO_FILE")]
    mounts = mounts_above(os.path.join(MODELS, values["MODEL"])) if values["MODEL"] else []
    if mounts:
        # Not required: the start of one whose disk does not come says so, and counts as a failure. systemd would leave
        # it out in silence.
        unit.append(Directive("After", " ".join(sorted(mounts)), "MODEL"))
    for name, file in credential_files.files(values).items():
        unit.append(Directive("RequiresMountsFor", file, credential_files.KEYS[name]))
    return {"Unit": unit, "Service": _service(settings, host)}


def mounts_above(path: str) -> list[str]:
    """Units of the mounts that a directory may lie on, if there are any (systemd.unit(5), "String Escaping")."""
    parts = [re.sub("[^A-Za-z0-9:_.]", lambda found: f"\\x{ord(found[0]):02x}", part) for part in path[1:].split("/")]
    if parts[0] in ("", "usr"):
        # Both are there before any generator runs.
        return []
    parts[0] = re.sub(r"^\.", r"\\x2e", parts[0])
    names = ["-".join(parts[:end]) for end in range(1, min(len(parts), DEEPEST_MOUNT) + 1)]
    return [f"{name}.mount" for name in names if len(name) <= LONGEST_UNIT]


def drop_in(settings: InstanceSettings, host: HostSettings) -> str:
    """The text of the drop-in for one instance."""
    made_from = f"Made by citadel-llm-generator from {settings.file}"
    if settings.refused:
        return _text(
            f"{made_from}, which is refused: these are the host's limits. citadel-llm check {settings.name} says why.",
            sections(settings, host),
        )
    return _text(f"{made_from}; edit that and run systemctl daemon-reload.", sections(settings, host))


def _text(comment: str, parts: Sections) -> str:
    lines = [f"# {comment}"]
    for section, directives in parts.items():
        lines += [f"[{section}]", *map(str, directives)]
    return "\n".join(lines) + "\n"


def _service(settings: InstanceSettings, host: HostSettings) -> list[Directive]:
    values = settings.values

    def number(key: str) -> float:
        return float(values[key])

    service = [
        Directive("User", host.values["VLLM_USER"], "VLLM_USER"),
        Directive("Group", host.values["VLLM_GROUP"], "VLLM_GROUP"),
        Directive("MemoryHigh", memory_high(number("MEMORY_LIMIT_GB")), "MEMORY_LIMIT_GB"),
        Directive("MemoryMax", round(number("MEMORY_LIMIT_GB") * GIBIBYTE), "MEMORY_LIMIT_GB"),
        # 100% is one core.
        Directive("CPUQuota", f"{max(1, round(number('CPU_CORES') * 100))}%", "CPU_CORES"),
        Directive("TasksMax", values["MAX_TASKS"], "MAX_TASKS"),
        Directive("Restart", values["RESTART_POLICY"], "RESTART_POLICY"),
        Directive("RestartSec", f"{number('RESTART_SEC'):g}s", "RESTART_SEC"),
        Directive("TimeoutStartSec", f"{number('START_TIMEOUT_SEC'):g}s", "START_TIMEOUT_SEC"),
        Directive("TimeoutStopSec", f"{number('DRAIN_TIMEOUT_SEC') + STOP_MARGIN_SEC:g}s", "DRAIN_TIMEOUT_SEC"),
    ]
    if host.values["VLLM_PID_PATH"] != HOST_KEYS["VLLM_PID_PATH"].default:
        below_run = host.values["VLLM_PID_PATH"].removeprefix("/run/")
        service += [
            Directive("RuntimeDirectory", "", "VLLM_PID_PATH"),
            Directive("RuntimeDirectory", f"{below_run}/{settings.name}", "VLLM_PID_PATH"),
            # As in the template: those of other instances are not there.
            Directive("TemporaryFileSystem", f"{host.values['VLLM_PID_PATH']}:ro", "VLLM_PID_PATH"),
        ]
    for name, file in credential_files.files(values).items():
        key = credential_files.KEYS[name]
        # What the service finds where there is no file: without it systemd would end the start, and give no reason.
        service.append(Directive("SetCredential", f"{name}:{credential_files.MISSING}", key))
        if credential_files.can_be_loaded(file):
            service.append(Directive("LoadCredential", f"{name}:{file}", key))
    if values["ALLOW_DOWNLOAD"] or not is_loopback(str(values["HOST"])):
        # The template admits loopback only, and systemd filters both directions with one list.
        service.append(Directive("IPAddressAllow", "any", "ALLOW_DOWNLOAD HOST"))
    if values["GPU_DEVICES"]:
        service.append(Directive("PrivateDevices", "no", "GPU_DEVICES"))
        service += [Directive("DeviceAllow", rule, "GPU_DEVICES") for rule in gpu_rules(values["GPU_DEVICES"])]
    return service


def gpu_rules(devices: Sequence[str]) -> list[str]:
    """DeviceAllow= for these GPUs, by their numbers or `all`: a GPU's own device, and those that control the driver."""
    if "all" in devices:
        # Older drivers give the same devices the second name.
        own = ["char-nvidia rw", "char-nvidia-frontend rw"]
    else:
        own = [f"/dev/nvidia{number} rw" for number in devices]
        own += ["/dev/nvidiactl rw", "/dev/nvidia-modeset rw"]
    # By class: nvidia-uvm and nvidia-uvm-tools, and the instances of a divided GPU (MIG).
    return [*own, "char-nvidia-uvm rw", "char-nvidia-caps r"]


def monitor_drop_in(host: HostSettings, addresses: set[str]) -> str:
    """The text of the monitor's drop-in: the packet filter for who asks it, and for the models that it asks.

    `addresses` are those that models listen on; the unit itself admits loopback, and if that is all the text is empty.
    """
    server = str(host.values["SERVER_IP"])
    beyond = {address for address in addresses if not is_loopback(address) and address not in EVERY_ADDRESS}
    if is_loopback(server) and not beyond:
        return ""
    parts: Sections = {}
    if not is_loopback(server):
        parts["Unit"] = [Directive("Wants", "network-online.target"), Directive("After", "network-online.target")]
        beyond = {"any"}
    parts["Service"] = [Directive("IPAddressAllow", address) for address in sorted(beyond)]
    return _text("Made by citadel-llm-generator from the settings of the host and of all models.", parts)


def log_drop_in(host: HostSettings) -> str:
    """The text of the drop-in of all units that write log files; empty if the template suffices."""
    path = str(host.values["VLLM_LOG_PATH"])
    if not host.values["LOG_TO_FILE"] or path == HOST_KEYS["VLLM_LOG_PATH"].default:
        return ""
    # With -: a directory that is missing is named by the unit itself, in words.
    parts: Sections = {"Service": [Directive("BindPaths", f"-{path}", "VLLM_LOG_PATH")]}
    return _text("Made by citadel-llm-generator from VLLM_LOG_PATH of the host.", parts)


def drop_ins(root: str, report: Report) -> Iterator[tuple[str, str]]:
    """Unit and text of every drop-in, in the order of the instances' names.

    Whatever goes wrong with one instance is reported and leaves the others as they are: it then has the limits of the
    unit itself. Raises nothing.
    """
    host = _of_the_host(root, report)
    addresses = set()
    for name in _names(root, report):
        try:
            settings = load_instance(name, host, root)
            text = drop_in(settings, host)
        except Exception as error:
            # Not foreseen, so of any kind; no other instance may pay for it.
            report(f"{instance_file(name, root)}: {_kind(error)}; the unit's own limits hold")
            continue
        for finding in settings.findings:
            report(finding)
        addresses.add(str(settings.values["HOST"]))
        yield unit_name(name), text
    try:
        for_monitor = monitor_drop_in(host, addresses)
    except Exception as error:
        report(f"{MONITOR}: {_kind(error)}; the unit's own packet filter holds")
        return
    if for_monitor:
        yield MONITOR, for_monitor
    for_logs = log_drop_in(host)
    if for_logs:
        yield LOG_TEMPLATE, for_logs


def _of_the_host(root: str, report: Report) -> HostSettings:
    try:
        host = load_host(root)
    except Exception as error:
        report(f"the settings of the host: {_kind(error)}; the built-in values hold")
        return built_in_host()
    for finding in host.findings:
        report(finding)
    return host


def _names(root: str, report: Report) -> list[str]:
    try:
        names = instance_names(root)
    except OSError as error:
        report(error)
        return []
    if len(names) > MAX_INSTANCES:
        report(
            f"{len(names)} instances, of which the first {MAX_INSTANCES} get their limits: {names[MAX_INSTANCES]} and "
            "those after it do not; move settings files that no model uses out of the directory"
        )
    return names[:MAX_INSTANCES]


def _kind(error: Exception) -> str:
    """An error in words, without its message: that may hold a value from the file."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    return f"{type(error).__name__} in line {place.tb_lineno if place else 0} of the generator; please report it"


def _write(directory: str, unit: str, text: str) -> None:
    """Write one drop-in: complete under its name, or not there. No symbolic link leads out of `directory`."""
    name = f"{unit}.d"
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.join(directory, name))
    folder = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    # systemd reads names that end in .conf only.
    partial = DROP_IN + ".part"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(partial, flags, 0o644, dir_fd=folder), "wb", buffering=0) as file:
                content = text.encode()
                while content:
                    content = content[file.write(content) :]
            os.rename(partial, DROP_IN, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def generate(directory: str, root: str = "/", report: Report = print) -> None:
    """Write the drop-ins of all instances below `directory`; `report` gets a sentence for each thing that is wrong."""
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        report(f"the drop-ins cannot be written: {error}")
        return
    for unit, text in drop_ins(root, report):
        try:
            _write(directory, unit, text)
        except OSError as error:
            report(f"the drop-in of {unit} cannot be written: {error.strerror}")
