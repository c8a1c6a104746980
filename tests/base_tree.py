"""Base trees of the machines' overlays: a minimal Debian with systemd, made once by debootstrap and kept.

Standard library only, as `machine`.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("CITADEL_BUILD_CACHE", "/var/cache/citadel-llm-build"))
TREE_PACKAGES = ("systemd", "systemd-sysv", "dbus", "iproute2", "procps", "curl")
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}


def package_depends() -> list[str]:
    """The packages that citadel-llm depends on or recommends; the base tree contains their .debs."""
    control = (PROJECT / "debian/control").read_text(encoding="utf-8")
    fields = re.findall(r"^(?:Depends|Recommends):(.*(?:\n[ \t].*)*)", control, re.MULTILINE)
    assert fields, "debian/control has no Depends"
    names = re.sub(r"\(.*?\)|\$\{.*?\}|\n", "", ",".join(fields)).split(",")
    return sorted(name.strip() for name in names if name.strip())


def base_tree(suite: str = "bookworm", more: Sequence[str] = ()) -> Path:
    """The tree of a minimal Debian with systemd, and `more` packages, made on first use (about a minute).

    Our package's dependencies are in the tree's apt cache, not installed: `apt install` works as on any host
    and needs no network.
    """
    packages = (*TREE_PACKAGES, *more)
    recipe = [suite, *packages, *package_depends()]
    tree = CACHE / "trees" / f"{suite}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    tree.parent.mkdir(parents=True, exist_ok=True)
    with (tree.parent / "lock").open("w") as lock:
        # Another run may be making the same tree.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.is_dir():
            _make_tree(suite, packages, tree)
    return tree


def _make_tree(suite: str, packages: Sequence[str], tree: Path) -> None:
    print(f"making a base tree of {suite} (once)", flush=True)
    partial = tree.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    log = CACHE / "debootstrap.log"
    fetch = ["apt-get", "-qy", "--no-install-recommends", "--download-only", "install"]
    steps = [
        ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, str(partial)],
        ["chroot", str(partial), "apt-get", "-q", "update"],
        ["chroot", str(partial), *fetch, "python3", "python3-venv", *package_depends()],
    ]
    try:
        for step in steps:
            with log.open("ab") as output:
                done = subprocess.run(step, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT, check=False)
            if done.returncode:
                raise SystemExit(f"{step[0]} failed; check the network. Its output is in {log}")
    except BaseException:
        # debootstrap mounts /proc and /sys below the tree.
        for mounted in ("proc", "sys"):
            subprocess.run(["umount", "--quiet", partial / mounted], check=False)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # The journal survives the machine, so that a failed test can keep it.
    (partial / "var/log/journal").mkdir(exist_ok=True)
    (partial / "etc/machine-id").unlink(missing_ok=True)
    partial.rename(tree)
