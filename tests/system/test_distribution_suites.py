"""Debian's own test suites of a package: piuparts in a chroot, autopkgtest (debian/tests) on a booted machine."""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from base_tree import CACHE, ENVIRONMENT, PROJECT, base_tree
from machine import Machine
from needs import PACKAGE
from versions import field, with_version

from .conftest import SUMMARY, install

SUITE = "bookworm"
KEPT = {
    "/var/lib/citadel-llm/": "holds the models",
    "/var/lib/citadel-llm/models/": "models are the user's data; one was put there",
    "/var/lib/citadel-llm/models/mine/": "the model",
    "/var/lib/citadel-llm/models/mine/config.json": "its file",
}
"""Paths that a purge may leave, and why. The users stay too, in files that piuparts never compares."""


@pytest.fixture
def repository() -> Iterator[Path]:
    """A package folder for apt: the dependencies, and the package with an older version number."""
    # Below the cache, which has room for 2 GB; readable by apt's own user.
    folder = Path(tempfile.mkdtemp(prefix="piuparts-", dir=CACHE))
    folder.chmod(0o755)
    try:
        for archive in (base_tree(SUITE) / "var/cache/apt/archives").glob("*.deb"):
            shutil.copy2(archive, folder)
        with_version(PACKAGE, f"{field(PACKAGE, 'Version')}~older", folder)
        with (folder / "Packages").open("w") as index:
            subprocess.run(["apt-ftparchive", "packages", "."], cwd=folder, stdout=index, check=True)
        yield folder
    finally:
        shutil.rmtree(folder)


def run_suite(command: list[str], **environment: str) -> str:
    """Run a suite that must pass; return its output, which is also kept beside the build's logs."""
    begin = time.monotonic()
    program = next(word for word in command if word in ("piuparts", "autopkgtest"))
    log = CACHE / f"{program}.log"
    with log.open("w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT | environment, check=False
        )
    # piuparts reports every link of a merged /usr.
    said = "".join(line for line in log.read_text().splitlines(True) if "by /usr merge" not in line)
    assert done.returncode == 0, said
    SUMMARY.append(f"{program}: passed in {time.monotonic() - begin:.0f} s")
    return said


def test_piuparts_finds_nothing_after_install_upgrade_and_purge(repository: Path) -> None:
    """piuparts looks for files left, changed or missing after a purge, broken links, processes and changed files."""
    with tempfile.TemporaryDirectory(prefix="piuparts-chroot-", dir=CACHE) as folder:
        command = [
            # Its mounts disappear with it, also when it is killed.
            "unshare", "--mount", "--propagation=private",
            "piuparts", "--defaults=debian", f"--distribution={SUITE}", f"--existing-chroot={base_tree(SUITE)}",
            "--keep-sources-list", f"--bindmount={repository}", f"--scriptsdir={PROJECT}/tests/piuparts",
            f"--tmpdir={folder}", "--log-level=info", "--fail-on-broken-symlinks",
            *(f"--ignore={path}" for path in KEPT), str(PACKAGE),
        ]  # fmt: skip
        said = run_suite(command, CITADEL_REPOSITORY=str(repository))
    passed = re.findall("PASS: (.*)", said)
    assert passed == ["Installation and purging test.", "Installation, upgrade and purging tests.", "All tests."], said


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A fresh host with the package."""
    with Machine.boot("autopkgtest", SUITE) as machine:
        install(machine)
        yield machine


def test_autopkgtest_passes_every_test_of_the_package(machine: Machine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(PROJECT / "debian", tree / "debian")
    # This file marks a built tree; without it autopkgtest would build the tree.
    (tree / "debian/files").write_text(f"{PACKAGE.name} net optional\n")
    server = [str(PROJECT / "tests/virt_machine.py"), str(machine.leader)]
    # A skipped test makes its exit status non-zero.
    said = run_suite(["autopkgtest", "--needs-internet=skip", str(tree), "--", *server])
    passed = re.findall(r"^(\w+) +PASS", said, re.MULTILINE)
    assert set(passed) == {"serves", "settings", "command"}, said
