"""Other versions of the built package, made in seconds instead of the minutes of a second build.

`with_version` changes only the version. For upgrades with changed files there are two packages:

    versions = Versions.make(package, folder)

The built package is unpacked once. *old* is the built package; *new* is the same tree with a higher version, two
changed conffiles, a changed module (it shows which code a process runs) and a renamed one. Both leave the engine out
(torch, vLLM and whatever else pip has installed, 2 GB): it lies in a folder of its own, which a test machine has as a
layer below its root, where dpkg does not see it. dpkg then needs seconds, the real maintainer scripts run,
and so are the running models. `whole` is *new* with the engine in it.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

CHANGED = "etc/default/citadel-llm-hermes-2", "etc/default/citadel-llm-test"
"""The conffiles that differ between old and new."""

COMMENT = "# A comment that the next version has.\n"
NEW_WORDS = "Ready (next version): "
"""Beginning of the status of a process that runs the new code."""

_MODULE = "hxp_enterprise_llm/protocol/state.py"
_RENAMED, _NEW_NAME = "hxp_enterprise_llm/worker/server.py", "next_server"
"""A module that main processes of the old version still need when it is gone from the disk."""
_OLD_WORDS, _CHANGED_WORDS = 'Phase.READY: "Ready"', 'Phase.READY: "Ready (next version)"'


class Versions(NamedTuple):
    """The packages, and the folder with the engine that `old` and `new` lack."""

    old: Path
    new: Path
    whole: Path
    engine: Path

    @classmethod
    def make(cls, package: Path, folder: Path) -> Self:
        """Unpack the package in `folder`, which must be empty and on the file system of the machines."""
        tree, changed, engine = folder / "old", folder / "new", folder / "engine"
        subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
        (found,) = tree.glob("opt/citadel/env/lib/python3*/site-packages")
        inside = found.relative_to(tree)
        (engine / inside).mkdir(parents=True)
        _move(tree / inside, engine / inside)
        subprocess.run(["cp", "-a", tree, changed], check=True)
        _change(changed, changed / inside)
        old = _pack(tree, folder / "old.deb")
        new = _pack(changed, folder / "new.deb")
        _move(engine / inside, changed / inside)
        whole = _pack(changed, folder / "whole.deb")
        _move(changed / inside, engine / inside)
        shutil.rmtree(tree)
        shutil.rmtree(changed)
        return cls(old, new, whole, engine)


def _move(packages: Path, to: Path) -> None:
    """Move everything except our own distribution."""
    for entry in packages.iterdir():
        if not entry.name.startswith("hxp_enterprise_llm"):
            entry.rename(to / entry.name)


def _change(tree: Path, packages: Path) -> None:
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text("".join(f"{line}.1\n" if line.startswith("Version: ") else f"{line}\n" for line in lines))
    # dpkg creates the file if it is missing.
    (tree / "DEBIAN/md5sums").unlink()
    for name in CHANGED:
        with (tree / name).open("a") as file:
            file.write(COMMENT)
    module = packages / _MODULE
    text = module.read_text()
    assert _OLD_WORDS in text
    module.write_text(text.replace(_OLD_WORDS, _CHANGED_WORDS))
    renamed = packages / _RENAMED
    renamed.rename(renamed.with_stem(_NEW_NAME))
    ours = packages / "hxp_enterprise_llm"
    for module in ours.rglob("*.py"):
        text = module.read_text()
        module.write_text(text.replace("hxp_enterprise_llm.worker.server", f"hxp_enterprise_llm.worker.{_NEW_NAME}"))
    for compiled in [*ours.rglob("__pycache__")]:
        shutil.rmtree(compiled)
    # The bytecode as environment.sh makes it: never compared with the source.
    flags = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", "/"]
    subprocess.run([tree / "opt/citadel/env/bin/python", "-I", "-m", "compileall", *flags, ours], check=True)


def _pack(tree: Path, package: Path) -> Path:
    subprocess.run(["dpkg-deb", "-Zzstd", "-z1", "--build", tree, package], check=True, stdout=subprocess.DEVNULL)
    return package


def field(package: Path, name: str) -> str:
    """One field of a package's control file."""
    return _output("dpkg-deb", "--field", package, name)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def with_version(package: Path, version: str, folder: Path) -> Path:
    """Make a copy of a package in `folder` with another version.

    Only the archive's member with the control files is packed again: packing 2 GB takes most of a minute.
    """
    files = next(member for member in _output("ar", "t", package).split() if member.startswith("data.tar"))
    renamed = folder / f"{field(package, 'Package')}_{version}_{field(package, 'Architecture')}.deb"
    with tempfile.TemporaryDirectory(dir=folder) as work:
        control = Path(work, "control/control")
        subprocess.run(["dpkg-deb", "--control", package, control.parent], check=True)
        control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}", control.read_text()))
        for command in (
            ["tar", "--create", "--gzip", "--owner=0", "--group=0", "--file=control.tar.gz", "-Ccontrol", "."],
            ["ar", "x", str(package.absolute()), "debian-binary", files],
            ["ar", "cr", str(renamed.absolute()), "debian-binary", "control.tar.gz", files],
        ):
            subprocess.run(command, cwd=work, check=True)
    return renamed
