"""The generator as a program: for systemd, and for people who want to see its output.

It uses the standard library only, see `settings.grammar`, and not argparse, whose import would double the run time.
"""

import contextlib
import os
import sys

from hxp_enterprise_llm.generator.drop_ins import DROP_IN, Report, drop_ins, generate, sections
from hxp_enterprise_llm.settings.keys import is_instance_name
from hxp_enterprise_llm.settings.units import unit_name
from hxp_enterprise_llm.settings.values import (
    HostSettings,
    InstanceSettings,
    instance_file,
    instance_names,
    load_host,
    load_instance,
)

KERNEL_LOG = "/dev/kmsg"
KERNEL_LOG_LINES, KERNEL_LOG_BYTES = 8, 700
"""Most records of one run, and most bytes of a record. Linux accepts 10 records in 5 s from a process (printk_devkmsg),
of at most 992 bytes each (LOG_LINE_MAX)."""

OUTPUT = "/run/systemd/generator"
NO_SUCH_INSTANCE, USAGE_STATUS = 4, 2
USAGE = """\
Usage: citadel-llm-generator NORMAL-DIRECTORY [EARLY-DIRECTORY LATE-DIRECTORY]
       citadel-llm-generator --dry-run
       citadel-llm-generator --explain [INSTANCE]

Turns the limits in /etc/default/citadel-llm-<model> into drop-ins of citadel-llm@<model>.service. systemd runs it at
boot and at every daemon-reload, see systemd.generator(7).

  --dry-run   print the files instead of writing them
  --explain   print each directive with its key and the file that sets the key
"""


class KernelLog:
    """The log of a generator: it must not use the journal, and its standard error is discarded."""

    def __init__(self) -> None:
        # O_NONBLOCK: the boot must not wait.
        self._file = os.open(KERNEL_LOG, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        self._said = 0

    def say(self, finding: object) -> None:
        """Log one finding, or only count it after KERNEL_LOG_LINES."""
        self._said += 1
        if self._said <= KERNEL_LOG_LINES:
            self._write(str(finding))

    def close(self) -> None:
        """Log how many findings were left out."""
        if self._said > KERNEL_LOG_LINES:
            self._write(f"and {self._said - KERNEL_LOG_LINES} more findings; citadel-llm check lists all")
        os.close(self._file)

    def _write(self, text: str) -> None:
        # One write is one record; <4> is the level of a warning. ASCII: no file may send escapes to a terminal.
        line = text.encode("ascii", "backslashreplace").replace(b"\n", b" ")[:KERNEL_LOG_BYTES]
        with contextlib.suppress(OSError):
            os.write(self._file, b"<4>citadel-llm-generator: " + line + b"\n")


def to_standard_error(finding: object) -> None:
    print(f"citadel-llm-generator: {finding}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Run with the arguments of the command; the exit status.

    Called by systemd, with directories, it is always 0: systemd cannot correct settings. 2: wrong usage. 4: no such
    instance.
    """
    if arguments and not arguments[0].startswith("-"):
        return _for_systemd(arguments[0])
    match arguments:
        case ["--help" | "-h"]:
            print(USAGE, end="")
            return 0
        case ["--dry-run"]:
            return dry_run("/", to_standard_error)
        case ["--explain", *names] if len(names) <= 1:
            return explain(names, "/", to_standard_error)
    print(USAGE, end="", file=sys.stderr)
    return USAGE_STATUS


def _for_systemd(directory: str) -> int:
    os.umask(0o022)
    log = None
    # systemd sets the variable for generators since version 251.
    if "SYSTEMD_SCOPE" in os.environ:
        with contextlib.suppress(OSError):
            log = KernelLog()
    generate(directory, report=log.say if log else to_standard_error)
    if log:
        log.close()
    return 0


def dry_run(root: str, report: Report) -> int:
    """Print every file that a run would write, each after its name."""
    for unit, text in drop_ins(root, report):
        print(f"# {OUTPUT}/{unit}.d/{DROP_IN}\n{text}")
    return 0


def explain(names: list[str], root: str, report: Report) -> int:
    """Print each directive of these instances, or of all, with its keys and the file that sets each."""
    host = load_host(root)
    for finding in host.findings:
        report(finding)
    for name in names or instance_names(root):
        if not is_instance_name(name) or not os.path.lexists(instance_file(name, root)):
            report(f"there is no instance {name!r}; citadel-llm list shows all instances")
            return NO_SUCH_INSTANCE
        settings = load_instance(name, host, root)
        for finding in settings.findings:
            report(finding)
        print(f"# {unit_name(name)}{', whose file is refused' if settings.refused else ''}")
        for section, directives in sections(settings, host).items():
            print(f"[{section}]")
            for directive in directives:
                sources = [f"{key} {_origin(key, settings, host)}" for key in directive.keys.split()]
                print(f"{directive!s:<44} {'; '.join(sources)}".rstrip())
    return 0


def _origin(key: str, settings: InstanceSettings, host: HostSettings) -> str:
    return settings.origins[key] if key in settings.origins else host.origins[key]
