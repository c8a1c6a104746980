"""The package on an emulated host as most users have it: Debian's own kernel with cgroup version 2, before and
after a reboot.

The other test machines share the kernel of this host. Emulation is slow: nothing is timed here.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from base_tree import CACHE, ENVIRONMENT
from machine import Machine
from needs import PACKAGE

from .conftest import SUMMARY

KERNEL = ("linux-image-amd64", "initramfs-tools", "apparmor")
GUEST, RANKS = (Path(__file__).with_name(name) for name in ("guest.sh", "ranks.py"))
UNIT = """\
[Unit]
After=multi-user.target
[Service]
ExecStart=/root/guest.sh
[Install]
WantedBy=multi-user.target
"""
LONGEST_SEC = 1200
GIB = 2**30


def make_host(folder: Path) -> None:
    """Make the disk of a host with the package, its kernel and its initrd."""
    with Machine.unbooted("kernel", KERNEL) as root:
        shutil.copy(PACKAGE, root / "root")
        for file in (GUEST, RANKS):
            shutil.copy(file, root / "root")
        (root / "etc/systemd/system/guest.service").write_text(UNIT)
        (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
        # As Debian's installer writes them.
        (root / "etc/hostname").write_text("guest\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 guest\n")
        for command in (
            ["apt-get", "-qy", "install", f"/root/{PACKAGE.name}"],
            ["rm", f"/root/{PACKAGE.name}"],
            ["systemctl", "enable", "guest.service"],
        ):
            subprocess.run(["chroot", root, *command], check=True, env=ENVIRONMENT, capture_output=True)
        for name in ("vmlinuz", "initrd.img"):
            # Debian's links to these files start at /, which is this host's root.
            (file,) = (root / "boot").glob(f"{name}-*")
            shutil.copy(file, folder / name)
        subprocess.run(["umount", root / "proc"], check=True)
        with (folder / "disk").open("wb") as disk:
            disk.truncate(6 * GIB)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, folder / "disk"], check=True)


def said_by(folder: Path) -> dict[str, str]:
    """Boot the host, which reboots itself once, and return the values that its script prints."""
    console = folder / "console"
    command: list[str | Path] = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(os.cpu_count() or 1),
        "-m", "6G", "-nic", "none", "-display", "none", "-monitor", "none", "-serial", f"file:{console}",
        "-drive", f"file={folder}/disk,format=raw,if=virtio,cache=unsafe",
        "-kernel", folder / "vmlinuz", "-initrd", folder / "initrd.img",
        "-append", "root=/dev/vda rw console=ttyS0 systemd.show_status=0 quiet loglevel=0",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, timeout=LONGEST_SEC, capture_output=True)
    finally:
        kept = CACHE / "journals/emulated-console"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if console.exists():
            shutil.copy(console, kept)
            print(f"its console: less -R {kept}")
    lines = console.read_text(errors="replace").splitlines()
    words = (line.removeprefix("citadel ").partition(" ") for line in lines if line.startswith("citadel "))
    return {name: value for name, _, value in words}


@pytest.mark.needs("qemu-system-x86_64")
def test_package_works_on_debian_kernel_with_cgroup_version_2() -> None:
    with tempfile.TemporaryDirectory(prefix="kernel-", dir=CACHE / "machines") as name:
        make_host(Path(name))
        said = said_by(Path(name))
    assert (said["cgroups"], said["monitor"]) == ("cgroup2fs", "active"), said
    assert said["start"].startswith("0 after ")
    limits = {"memory.max": str(4 * GIB), "memory.swap.max": "0", "cpu.max": "200000 100000", "pids.max": "1000"}
    assert {name: said[name] for name in limits} == limits
    assert 3.7 * GIB < int(said["memory.high"]) < 4 * GIB
    # A secret, a file outside its own directory, the memory of a process outside its domain.
    assert said["landlock"] == "2 True refused refused refused", "what confines an engine"
    sent, refused = "tcp-sent udp-sent", "tcp-refused udp-refused"
    expected = {"127.0.0.1": sent, "127.0.0.53": refused, "127.0.1.1": refused, "192.0.2.1": refused}
    packets = {address: said[f"packets-{address}"].strip() for address in expected}
    assert packets == expected
    assert {said[f"packets-outside-{address}"].strip() for address in packets} == {sent}
    # Several processes of one model connect, although the host's name is an address that the filter refuses.
    assert said["ranks"] == "127.0.1.1 2"
    health = json.loads(said["health"])
    assert (health["state"], health["ready"], health["memory_limit_bytes"]) == ("ready", True, 4 * GIB)
    assert 2e8 < health["memory_bytes"] < 4 * GIB and health["tasks"] > 3
    tokens = '"completion_tokens":4'
    assert [said[when] for when in ("answer", "answer-after-oom")] == [tokens] * 2
    # The kernel's own counter of kills disappears with the control group if it kills the main process too.
    assert float(said["out-of-memory"]) >= 1
    assert (said["run-time"], said["answer-after-reboot"]) == ("root 755", tokens)
    assert said["out-of-memory-after-reboot"] == said["out-of-memory"], "the monitor remembers"
    SUMMARY.append(f"packets of a model on Linux {said['kernel']}: {packets}")
    SUMMARY.append(f"emulated: Linux {said['kernel']} with control groups 2, test started {said['start'][2:]}")
