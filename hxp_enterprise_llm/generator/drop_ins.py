"""Settings to systemd: the limits, restart policy, dependencies, devices and credentials of an instance as a drop-in.

A generator is needed because systemd expands variables in Exec lines only: `MemoryMax=${X}` cannot work.
It runs as root at boot on files with any content; docs/decisions/0009 lists its guarantees.
It uses the standard library only, see `settings.grammar`.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hxp_enterprise_llm.settings import credential_files
from hxp_enterprise_llm.settings.keys import (
    DYNAMIC_USER,
    EVERY_ADDRESS,
    GIBIBYTE,
    HOST_KEYS,
    STOP_MARGIN_SEC,
    is_loopback,
    memory_high,
)
from hxp_enterprise_llm.settings.units import LOG_TEMPLATE, MONITOR, log_unit_name, unit_name, user_name
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
DEEPEST_MOUNT, LONGEST_UNIT = 16, 249
"""Number of leading directories of a path that are treated as mounts, and the longest unit name without .mount
(characters; systemd.unit(5))."""
ALLOWED_BY_TEMPLATE = ("127.0.0.1", "::1")
"""Addresses in IPAddressAllow= of the template."""
RESOLVERS = "-/run/systemd/resolve -/run/resolvconf -/run/NetworkManager"
"""Directories in the otherwise empty /run that /etc/resolv.conf may link to. Not the file: its writers replace it."""
GPU_SOCKETS = "-/run/nvidia-persistenced -/run/nvidia-fabricmanager"
"""Directories of the sockets of NVIDIA's daemons."""
PRIVATE_CACHES = "/var/cache/private/citadel-llm"
"""Where systemd puts CacheDirectory= with DynamicUser=. NoExecPaths= needs this path: with the symbolic link in
/var/cache/citadel-llm the unit does not start."""
IN_HOST = "+/usr/bin/nsenter --target=1 --mount"
"""Runs a command as root with the mounts of the host."""
MAX_INSTANCES = 2048
"""Number of instances that get a drop-in. With the limits on a settings file, it limits run time, memory and /run."""

_SAFE = re.compile(r"[A-Za-z0-9 ._/:@%+,=-]*")
_SAFE_UNITS = re.compile(r"(?:[A-Za-z0-9 ._:@-]|\\x[0-9a-f]{2})*")
"""Unit names may hold the backslash that escapes a character of a path."""
Report = Callable[[object], None]
"""Receives one finding, as a sentence."""


class Directive(NamedTuple):
    """One line of a drop-in. `keys` are the settings that it is made from, separated by spaces."""

    name: str
    value: object
    keys: str = ""

    def __str__(self) -> str:
        """The line with `%` escaped, so that systemd reads no specifier.

        Raises ValueError for a character that the rules of the keys should have refused.
        """
        value = str(self.value)
        if not (_SAFE_UNITS if self.name == "After" else _SAFE).fullmatch(value):
            raise ValueError(f"{self.name}= would contain a character with a special meaning to systemd")
        # CPUQuota= ends in a percent sign and expands no specifiers.
        return f"{self.name}={value if self.name == 'CPUQuota' else value.replace('%', '%%')}"


Sections = dict[str, list[Directive]]


def sections(settings: InstanceSettings, host: HostSettings) -> Sections:
    """The content of an instance's drop-in. If the settings are refused, it has the host-wide limits."""
    values = settings.values
    unit = [Directive("SourcePath", settings.file)]
    # systemd would break the cycle of a unit that depends on itself by dropping a job.
    requires = [unit_name(name) for name in values["REQUIRES"] if name != settings.name]
    after = [unit_name(name) for name in values["AFTER"] if name != settings.name]
    if requires:
        unit.append(Directive("Requires", " ".join(requires), "REQUIRES"))
    if requires or after:
        unit.append(Directive("After", " ".join(sorted({*requires, *after})), "REQUIRES AFTER"))
    if not is_loopback(str(values["HOST"])):
        # network.target may be reached before the host has this address.
        unit += [
            Directive("Wants", "network-online.target", "HOST"),
            Directive("After", "network-online.target", "HOST"),
        ]
    if host.values["LOG_TO_FILE"]:
        # Ordered after the follower, so that at a shutdown the log file gets the instance's last lines.
        follower = log_unit_name(settings.name)
        unit += [Directive("Wants", follower, "LOG_TO_FILE"), Directive("After", follower, "LOG_TO_FILE")]
    mounts = mounts_above(os.path.join(MODELS, values["MODEL"])) if values["MODEL"] else []
    if mounts:
        # Not required: without the disk, the start fails with a reason. systemd would skip a start without its
        # requirement silently.
        unit.append(Directive("After", " ".join(sorted(mounts)), "MODEL"))
    for name, file in credential_files.files(values).items():
        unit.append(Directive("RequiresMountsFor", file, credential_files.KEYS[name]))
    return {"Unit": unit, "Service": _service(settings, host)}


def mounts_above(path: str) -> list[str]:
    """Names of the mount units that a directory may lie on (systemd.unit(5), "String Escaping"); they may not exist."""
    parts = [re.sub("[^A-Za-z0-9:_.]", lambda found: f"\\x{ord(found[0]):02x}", part) for part in path[1:].split("/")]
    if parts[0] in ("", "usr"):
        # Both are mounted before any generator runs.
        return []
    parts[0] = re.sub(r"^\.", r"\\x2e", parts[0])
    names = ["-".join(parts[:end]) for end in range(1, min(len(parts), DEEPEST_MOUNT) + 1)]
    return [f"{name}.mount" for name in names if len(name) <= LONGEST_UNIT]


def drop_in(settings: InstanceSettings, host: HostSettings) -> str:
    """The text of the drop-in for one instance."""
    made_from = f"Made by citadel-llm-generator from {settings.file}"
    if settings.refused:
        return _text(
            f"{made_from}, which is refused; these are the host-wide limits. Reason: citadel-llm check {settings.name}",
            sections(settings, host),
        )
    return _text(f"{made_from}; edit that file and run systemctl daemon-reload.", sections(settings, host))


def _text(comment: str, parts: Sections) -> str:
    lines = [f"# {comment}"]
    for section, directives in parts.items():
        lines += [f"[{section}]", *map(str, directives)]
    return "\n".join(lines) + "\n"


def _service(settings: InstanceSettings, host: HostSettings) -> list[Directive]:
    values = settings.values

    def number(key: str) -> float:
        return float(values[key])

    dynamic = host.values["VLLM_USER"] == DYNAMIC_USER
    service = [
        Directive("User", user_name(settings.name) if dynamic else host.values["VLLM_USER"], "VLLM_USER"),
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
    run_time = host.values["VLLM_PID_PATH"]
    elsewhere = run_time != HOST_KEYS["VLLM_PID_PATH"].default
    if dynamic:
        service += _user_of_its_own(f"{run_time}/{settings.name}", host.values["VLLM_GROUP"])
    elif elsewhere:
        service += [
            Directive("RuntimeDirectory", "", "VLLM_PID_PATH"),
            Directive("RuntimeDirectory", f"{run_time.removeprefix('/run/')}/{settings.name}", "VLLM_PID_PATH"),
        ]
    if elsewhere:
        # As in the template: hides the directories of other instances.
        service.append(Directive("TemporaryFileSystem", f"{run_time}:ro", "VLLM_PID_PATH"))
    for name, file in credential_files.files(values).items():
        key = credential_files.KEYS[name]
        # The service gets this value if the file is missing. Without it, systemd would fail the start without a reason.
        service.append(Directive("SetCredential", f"{name}:{credential_files.MISSING}", key))
        if credential_files.can_be_loaded(file):
            service.append(Directive("LoadCredential", f"{name}:{file}", key))
    service += _network(str(values["HOST"]), values["ALLOW_DOWNLOAD"])
    if values["GPU_DEVICES"]:
        service.append(Directive("PrivateDevices", "no", "GPU_DEVICES"))
        service += [Directive("DeviceAllow", rule, "GPU_DEVICES") for rule in gpu_rules(values["GPU_DEVICES"])]
        service.append(Directive("BindReadOnlyPaths", GPU_SOCKETS, "GPU_DEVICES"))
        service.append(Directive("SystemCallFilter", "memfd_create", "GPU_DEVICES"))
    if dynamic or values["GPU_DEVICES"]:
        # The empty value removes the paths of the template.
        service.append(Directive("NoExecPaths", "", "VLLM_USER GPU_DEVICES"))
    if dynamic and not values["GPU_DEVICES"]:
        # Code for a GPU is compiled at run time and loaded from the instance's cache.
        service.append(Directive("NoExecPaths", f"-{PRIVATE_CACHES}/{settings.name}", "VLLM_USER GPU_DEVICES"))
    if dynamic or values["GPU_DEVICES"] or elsewhere:
        service.append(Directive("NoExecPaths", f"-{run_time}/{settings.name}", "VLLM_PID_PATH"))
    return service


def _network(host: str, download: bool) -> list[Directive]:
    """What opens the packet filter beyond 127.0.0.1 and ::1; one list filters both directions."""
    if download or not is_loopback(host):
        return [
            Directive("IPAddressAllow", "any", "ALLOW_DOWNLOAD HOST"),
            Directive("BindReadOnlyPaths", RESOLVERS, "ALLOW_DOWNLOAD HOST"),
        ]
    return [] if host in ALLOWED_BY_TEMPLATE else [Directive("IPAddressAllow", host, "HOST")]


def _user_of_its_own(run_time: str, group: str) -> list[Directive]:
    """Directives of an instance with VLLM_USER=dynamic; `run_time` is its run-time directory.

    systemd would put RuntimeDirectory= into /run/private, which only root may enter; the monitor and the command read
    state.json. So root creates the directory for the group, and the mounts of the unit hide it from other instances.
    """
    return [
        Directive("DynamicUser", "yes", "VLLM_USER"),
        Directive("RuntimeDirectory", "", "VLLM_USER"),
        # systemd 252 applies TemporaryFileSystem= to commands with + too; nsenter runs this one with the mounts of the
        # host.
        Directive(
            "ExecStartPre", f"{IN_HOST} install -d -o root -g {group} -m 0775 {run_time}", "VLLM_USER VLLM_GROUP"
        ),
        # -: the directory does not exist yet when ExecStartPre= starts.
        Directive("BindPaths", f"-{run_time}", "VLLM_USER VLLM_PID_PATH"),
        Directive("Environment", f"RUNTIME_DIRECTORY={run_time}", "VLLM_USER VLLM_PID_PATH"),
    ]


def gpu_rules(devices: Sequence[str]) -> list[str]:
    """DeviceAllow= values for these GPUs (numbers or `all`): each GPU's device and the driver's control devices."""
    if "all" in devices:
        # Older drivers use the second name for the same devices.
        own = ["char-nvidia rw", "char-nvidia-frontend rw"]
    else:
        own = [f"/dev/nvidia{number} rw" for number in devices]
        own += ["/dev/nvidiactl rw", "/dev/nvidia-modeset rw"]
    # Classes: nvidia-uvm and nvidia-uvm-tools; the capabilities of a divided GPU (MIG).
    return [*own, "char-nvidia-uvm rw", "char-nvidia-caps r"]


def monitor_drop_in(host: HostSettings, addresses: set[str]) -> str:
    """The text of the monitor's drop-in: it opens the packet filter to the monitor's clients and to the models.

    `addresses` are the addresses that models listen on. The unit itself allows loopback; if that suffices, the text is
    empty.
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
    # -: if the directory is missing, the unit itself reports it.
    parts: Sections = {"Service": [Directive("BindPaths", f"-{path}", "VLLM_LOG_PATH")]}
    return _text("Made by citadel-llm-generator from VLLM_LOG_PATH of the host.", parts)


def drop_ins(root: str, report: Report) -> Iterator[tuple[str, str]]:
    """Unit and text of every drop-in, in the order of the instances' names.

    An error in one instance is reported and does not affect the others: the instance keeps the limits of the template.
    Raises nothing.
    """
    host = _of_the_host(root, report)
    addresses = set()
    for name in _names(root, report):
        try:
            settings = load_instance(name, host, root)
            text = drop_in(settings, host)
        except Exception as error:
            # Unforeseen, so of any type; other instances must not suffer.
            report(f"{instance_file(name, root)}: {_kind(error)}; the limits of the template apply")
            continue
        for finding in settings.findings:
            report(finding)
        addresses.add(str(settings.values["HOST"]))
        yield unit_name(name), text
    try:
        for_monitor = monitor_drop_in(host, addresses)
    except Exception as error:
        report(f"{MONITOR}: {_kind(error)}; the packet filter of its unit applies")
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
        report(f"the settings of the host: {_kind(error)}; the built-in values apply")
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
            f"there are {len(names)} instances, and only the first {MAX_INSTANCES} get their limits: "
            f"{names[MAX_INSTANCES]} and the following do not; remove settings files that no model uses"
        )
    return names[:MAX_INSTANCES]


def _kind(error: Exception) -> str:
    """Describe an error without its message, which may contain a value from the file."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    return f"{type(error).__name__} in line {place.tb_lineno if place else 0} of the generator; please report it"


def _write(directory: str, unit: str, text: str) -> None:
    """Write one drop-in: it is complete or absent. No symbolic link leads out of `directory`."""
    name = f"{unit}.d"
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.join(directory, name))
    folder = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    # systemd reads only names that end in .conf.
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
    """Write the drop-ins of all instances below `directory`; `report` receives each finding."""
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
