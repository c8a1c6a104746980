"""Settings files that are none, on a booted host: a clear error and 78 each, and no other instance touched."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import TINY_MODEL, Host

GOOD = f"MODEL={TINY_MODEL}\nPORT=11570\nKV_CACHE_GB=0.25\n"


def _binary(file: Path) -> None:
    file.write_bytes(bytes(range(128, 256)) * 40)


def _fifo(file: Path) -> None:
    os.mkfifo(file)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (Path.mkdir, "is not a regular file"),
    "10 MB": (lambda file: file.write_bytes(b"#" * 10_000_000), "is larger than 64 KiB"),
    "binary": (_binary, "is not UTF-8 text"),
    "NUL": (lambda file: file.write_bytes(GOOD.encode() + b"A=\0\n"), "contains a control character"),
    "CRLF": (lambda file: file.write_bytes(GOOD.replace("\n", "\r\n").encode()), "ends in CR LF"),
    "a FIFO": (_fifo, "is not a regular file"),
    "a link": (lambda file: file.symlink_to("/etc/passwd"), "is a symbolic link"),
    "unit syntax": (lambda file: file.write_text(GOOD + "ExecStartPre=/bin/touch\n"), "ExecStartPre is not a setting"),
    "a shell command": (lambda file: file.write_text(GOOD + "HOST=$(touch /run/pwned)\n"), "leave out the $"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_none(host: Host, kind: str) -> None:
    machine = host.machine
    make, words = BAD[kind]
    file = machine.inside("/etc/default/citadel-llm-none")
    limits = machine.show("citadel-llm@test", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax")
    make(file)
    try:
        machine.run("systemctl", "daemon-reload")
        check = machine.run("citadel-llm", "check", "none", check=False)
        assert words in check.stderr, check.stderr
        start = machine.run("systemctl", "start", "citadel-llm@none", check=False)
        shown = machine.show("citadel-llm@none", "ExecMainStatus", "StatusText", "MemoryMax")
        if kind == "unit syntax":
            # An unknown key is a warning; it is named, and it is nothing to systemd.
            assert (check.returncode, start.returncode) == (0, 0), check.stderr
        else:
            assert (check.returncode, shown["ExecMainStatus"]) == (78, "78"), (check, shown)
            assert words in shown["StatusText"]
        assert shown["MemoryMax"] == str(4 * 2**30)
        assert "none" in machine.output("citadel-llm", "list")
        assert not machine.inside("/run/pwned").exists()
        assert machine.show("citadel-llm@test", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax") == limits
    finally:
        machine.run("systemctl", "stop", "citadel-llm@none", check=False)
        machine.run("systemctl", "reset-failed", "citadel-llm@none", check=False)
        machine.run("rm", "-rf", "/etc/default/citadel-llm-none")
        machine.run("systemctl", "daemon-reload")
