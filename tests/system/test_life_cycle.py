"""Install, remove and purge, with systemd and in a chroot without."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import ENVIRONMENT, Machine

from .conftest import PACKAGE, install


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine of its own: these tests take the package away."""
    with Machine.boot("life-cycle") as machine:
        yield machine


def test_install_makes_user_directories_and_limits(machine: Machine) -> None:
    machine.copy_in(PACKAGE, f"/root/{PACKAGE.name}")
    machine.run("apt-get", "-qy", "install", "libnuma1", "python3")
    begin = time.monotonic()
    install(machine)
    print(f"apt install: {time.monotonic() - begin:.1f} s")
    listed = machine.output(
        "stat", "-c", "%n %U:%G %a", "/run/citadel-llm", "/var/lib/citadel-llm/models", "/var/cache/citadel-llm",
        "/var/log/citadel-llm", "/etc/citadel-llm", "/opt/citadel/env", "/opt/citadel/config/services",
    )  # fmt: skip
    assert listed.splitlines() == [
        "/run/citadel-llm agent0:agent0 755",
        "/var/lib/citadel-llm/models agent0:agent0 755",
        "/var/cache/citadel-llm agent0:agent0 755",
        "/var/log/citadel-llm agent0:adm 750",
        "/etc/citadel-llm root:root 750",
        "/opt/citadel/env root:root 755",
        "/opt/citadel/config/services root:root 755",
    ]
    assert machine.show("citadel-llm@mixtral-8x7b", "MemoryMax")["MemoryMax"] == str(90 * 2**30)
    assert machine.output("systemctl", "is-enabled", "citadel-llm.target") == "enabled"
    # Only what the administrator starts runs.
    assert not machine.run("pgrep", "-u", "agent0", check=False).stdout


def test_remove_stops_everything_and_purge_keeps_models_only(machine: Machine) -> None:
    machine.run("systemctl", "enable", "--now", "citadel-llm@test")
    machine.write("/var/lib/citadel-llm/models/mine/config.json", "{}")
    machine.write("/etc/default/citadel-llm-mine", "MODEL=/var/lib/citadel-llm/models/mine\nPORT=11530\n")
    machine.run("apt-get", "-qy", "remove", "citadel-llm")
    assert not machine.run("pgrep", "-u", "agent0", check=False).stdout
    assert machine.inside("/etc/default/citadel-llm-mine").exists()
    links = machine.output("find", "/etc/systemd/system", "-xtype", "l")
    assert not machine.inside("/opt/citadel").exists()
    assert not links, links
    said = machine.output("apt-get", "-qy", "purge", "citadel-llm")
    assert "the models are kept in /var/lib/citadel-llm/models" in said
    elsewhere = " ".join(f"-path {path} -prune -o" for path in ("/proc", "/run", "/root", "/var/log", "/var/lib/apt"))
    left = machine.output("sh", "-c", f"find / -xdev {elsewhere} -name '*citadel*' -print")
    assert left.splitlines() == ["/var/lib/citadel-llm"]
    assert machine.inside("/var/lib/citadel-llm/models/mine/config.json").exists()
    assert "agent0" in machine.output("getent", "passwd", "agent0")


def test_install_in_a_chroot_without_systemd(machine: Machine, tmp_path: Path) -> None:
    """With no systemd running the package installs the same, and starts nothing."""
    with Machine.unbooted("chroot") as root:
        (root / "root" / PACKAGE.name).write_bytes(PACKAGE.read_bytes())
        for arguments in (["install", f"/root/{PACKAGE.name}"], ["purge", "citadel-llm"]):
            done = subprocess.run(
                ["chroot", str(root), "apt-get", "-qy", *arguments],
                capture_output=True,
                text=True,
                env=ENVIRONMENT,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            if arguments[0] == "install":
                assert (root / "var/lib/citadel-llm/models").stat().st_uid != 0
                assert (root / "etc/systemd/system/multi-user.target.wants/citadel-llm.target").is_symlink()
