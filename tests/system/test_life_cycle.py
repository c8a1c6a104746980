"""The life cycle of the full package of 2 GB; test_life_cycle_matrix.py covers more cases without the engine.

The tests depend on each other and run in their order.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from base_tree import ENVIRONMENT
from machine import Machine
from needs import PACKAGE
from versions import COMMENT, NEW_WORDS, Versions

from .conftest import SUMMARY, install
from .life_cycle import EDIT, EDITED, UNEDITED

DIRECTORIES = [
    "/run/citadel-llm root:root 755",
    "/var/lib/citadel-llm/models agent0:agent0 755",
    "/var/cache/citadel-llm root:root 755",
    "/var/log/citadel-llm agent0:adm 750",
    "/etc/citadel-llm root:root 750",
    "/opt/citadel/env root:root 755",
    "/opt/citadel/config/services root:root 755",
]
DIRECTORIES_NAMED = [line.split()[0] for line in DIRECTORIES]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A separate machine: these tests remove the package."""
    with Machine.boot("life-cycle") as machine:
        yield machine


def test_install_without_disk_space_leaves_no_files(machine: Machine) -> None:
    machine.copy_in(PACKAGE, f"/root/{PACKAGE.name}")
    machine.run("apt-get", "-qy", "install", "libnuma1", "python3")
    machine.run("mkdir", "-p", "/opt/citadel")
    machine.run("mount", "-t", "tmpfs", "-o", "size=200M,mode=755", "tmpfs", "/opt/citadel")
    done = machine.run("apt-get", "-qy", "install", f"/root/{PACKAGE.name}", check=False)
    assert done.returncode != 0
    assert "No space left on device" in done.stdout + done.stderr
    used = machine.output("df", "--output=used", "/opt/citadel").split()[-1]
    machine.run("umount", "/opt/citadel")
    assert int(used) < 1000, f"{used} kB are left of it"
    assert not machine.run("find", "/lib/systemd", "/etc/systemd", "/etc/default", "-name", "*citadel*").stdout
    # apt had unpacked other packages, which wait to be configured.
    assert "citadel-llm" not in machine.output("dpkg", "--audit")
    SUMMARY.append("life cycle: an installation without disk space fails and leaves no file; the next one succeeds")


def test_install_creates_user_directories_and_limits(machine: Machine) -> None:
    begin = time.monotonic()
    install(machine)
    print(f"apt install: {time.monotonic() - begin:.1f} s")
    assert machine.output("stat", "-c", "%n %U:%G %a", *DIRECTORIES_NAMED).splitlines() == DIRECTORIES
    assert machine.show("citadel-llm@mixtral-8x7b", "MemoryMax")["MemoryMax"] == str(90 * 2**30)
    assert machine.output("systemctl", "is-enabled", "citadel-llm.target") == "enabled"
    # The installation starts no instance.
    assert not machine.run("pgrep", "-u", "agent0", check=False).stdout


def test_full_package_upgrade_restarts_instance_and_keeps_edits(machine: Machine, versions: Versions) -> None:
    machine.run("systemctl", "enable", "--now", "citadel-llm@test")
    with machine.inside(EDITED).open("a") as file:
        file.write(EDIT)
    # Versions before 1.1 gave these directories to agent0.
    machine.run("chown", "agent0:agent0", "/run/citadel-llm", "/var/cache/citadel-llm")
    machine.copy_in(versions.whole, "/root/whole.deb")
    begin = time.monotonic()
    keep = ("-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold")
    said = machine.output("apt-get", "-qy", *keep, "install", "/root/whole.deb")
    print(f"upgrade with one model restarted: {time.monotonic() - begin:.1f} s")
    assert machine.show("citadel-llm@test", "StatusText")["StatusText"].startswith(NEW_WORDS)
    assert machine.inside(EDITED).read_text().endswith(EDIT)
    assert machine.inside(UNEDITED).read_text().endswith(COMMENT)
    assert machine.output("stat", "-c", "%n %U:%G %a", *DIRECTORIES_NAMED).splitlines() == DIRECTORIES
    assert "old version" not in said


def test_remove_stops_everything_and_purge_keeps_models_only(machine: Machine) -> None:
    machine.write("/var/lib/citadel-llm/models/mine/config.json", "{}")
    machine.write("/etc/default/citadel-llm-mine", "MODEL=/var/lib/citadel-llm/models/mine\nPORT=11530\n")
    machine.run("apt-get", "-qy", "remove", "citadel-llm")
    assert not machine.run("pgrep", "-u", "agent0", check=False).stdout
    assert machine.inside("/etc/default/citadel-llm-mine").exists()
    links = machine.output("find", "/etc/systemd/system", "-xtype", "l")
    assert not machine.inside("/opt/citadel").exists()
    assert not links, links
    assert not list(machine.inside("/run/citadel-llm").iterdir()), "state of instances"
    said = machine.output("apt-get", "-qy", "purge", "citadel-llm")
    assert "the models are kept in /var/lib/citadel-llm/models" in said
    elsewhere = " ".join(f"-path {path} -prune -o" for path in ("/proc", "/run", "/root", "/var/log", "/var/lib/apt"))
    left = machine.output("sh", "-c", f"find / -xdev {elsewhere} -name '*citadel*' -print")
    assert left.splitlines() == ["/var/lib/citadel-llm"]
    assert machine.inside("/var/lib/citadel-llm/models/mine/config.json").exists()
    assert "agent0" in machine.output("getent", "passwd", "agent0")


def test_package_steps_work_in_a_chroot_without_systemd(versions: Versions) -> None:
    """Without a running systemd the package makes the same changes and starts nothing."""
    with Machine.unbooted("chroot") as root:
        wants = root / "etc/systemd/system"
        for package in (versions.old, versions.new):
            shutil.copy(package, root / "root")

        def chroot(*command: str) -> str:
            keep = ["-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold", "--allow-downgrades"]
            words = ["apt-get", "-qy", *keep, *command[1:]] if command[0] == "apt-get" else [*command]
            done = subprocess.run(
                ["chroot", str(root), *words], capture_output=True, text=True, env=ENVIRONMENT, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        chroot("apt-get", "install", "/root/old.deb")
        assert (root / "var/lib/citadel-llm/models").stat().st_uid != 0
        assert (wants / "multi-user.target.wants/citadel-llm.target").is_symlink()
        enabled, masked = "citadel-llm@test.service", "citadel-llm@phi-3-mini.service"
        chroot("systemctl", "enable", enabled, masked)
        chroot("systemctl", "mask", masked)
        chroot("systemctl", "disable", "citadel-llm-monitor")
        links = [wants / "citadel-llm.target.wants" / unit for unit in (enabled, masked)]
        with (root / EDITED[1:]).open("a") as file:
            file.write(EDIT)
        steps = {
            "upgrade": ("install", "/root/new.deb"),
            "reinstall": ("--reinstall", "install", "/root/new.deb"),
            "downgrade": ("install", "/root/old.deb"),
            "remove": ("remove", "citadel-llm"),
            "install again": ("install", "/root/new.deb"),
        }
        for step, arguments in steps.items():
            chroot("apt-get", *arguments)
            assert [link.is_symlink() for link in links] == [step != "remove"] * 2, step
            assert (wants / "multi-user.target.wants/citadel-llm.target").is_symlink() == (step != "remove"), step
            assert not (wants / "multi-user.target.wants/citadel-llm-monitor.service").is_symlink(), step
            assert (root / EDITED[1:]).read_text().endswith(EDIT), step
            new = arguments[-1] == "/root/new.deb"
            assert (root / UNEDITED[1:]).read_text().endswith(COMMENT) == new, step
            assert not dangling(wants), step
        chroot("apt-get", "purge", "citadel-llm")
        left = list(root.glob("etc/**/*citadel*"))
        assert not left, left
        assert not dangling(wants)
        assert not (root / "var/lib/citadel-llm").exists()
        SUMMARY.append(f"life cycle: {len(steps) + 2} steps in a chroot without systemd, the same links and settings")


def dangling(folder: Path) -> list[Path]:
    """Our broken links; the targets of absolute links are looked up in the tree that contains the folder."""
    return [path for path in folder.rglob("*citadel*") if path.is_symlink() and not target(folder, path).exists()]


def target(folder: Path, link: Path) -> Path:
    return Path(str(folder).removesuffix("/etc/systemd/system") + str(link.readlink()))
