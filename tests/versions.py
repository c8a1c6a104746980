"""The package under test as another version of itself, for upgrades and downgrades."""

import re
import subprocess
import tempfile
from pathlib import Path


def field(package: Path, name: str) -> str:
    """One field of a package's control file."""
    return _output("dpkg-deb", "--field", package, name)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def with_version(package: Path, version: str, folder: Path) -> Path:
    """A copy of a package in `folder`, the same but for its version.

    Only the member of the archive that holds the control files is made anew: packing 2 GB takes most of a minute.
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
