"""Linters that run as tests on the shipped files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import private_names
import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
TESTS = PROJECT / "tests"
SHELL = [
    "build.sh",
    ".ci/run",
    "bench/compression.sh",
    "tests/system/guest.sh",
    *(f"packaging/{name}" for name in sorted(p.name for p in (PROJECT / "packaging").glob("*.sh"))),
]
POSIX_SHELL = [
    *(f"debian/citadel-llm.{name}" for name in ("postinst", "prerm", "postrm")),
    *(str(p) for p in sorted((PROJECT / "debian/tests").iterdir()) if p.name != "control"),
    *(str(p) for p in sorted((PROJECT / "tests/piuparts").iterdir())),
]


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy() -> None:
    for version in ("3.11", "3.13"):
        run(sys.executable, "-m", "mypy", f"--python-version={version}", "hxp_enterprise_llm")
    run(sys.executable, "-m", "mypy", "tests", "bench")


def test_imports_go_one_way() -> None:
    """Check the contracts of pyproject.toml; docs/decisions/0019 gives the reasons."""
    run(sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")


def test_run_with_unmet_needs_fails_with_reasons() -> None:
    environment = os.environ | {"CITADEL_TEST_PACKAGE": "none"}
    for folder in ("tests/system/test_keys.py", "tests/package/test_package.py"):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", folder]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
        assert "CITADEL_TEST_PACKAGE must be" in done.stderr and "sudo ./build.sh test" in done.stderr


def test_no_test_is_skipped() -> None:
    """A skipped test looks like one that passed: what a test needs of the host is a mark, see tests/needs.py."""
    skips = re.compile(r"pytest\.(skip|xfail|importorskip|mark\.(skip|skipif|xfail))\b|unittest\.skip")
    for file in [*TESTS.rglob("*.py"), *(PROJECT / "bench").rglob("*.py")]:
        assert file == Path(__file__) or not skips.search(file.read_text(encoding="utf-8")), file


def test_no_test_uses_a_private_name_of_the_product() -> None:
    """Such a test fails when the code changes and the behaviour does not: give the product a parameter instead."""
    for file in [*TESTS.rglob("*.py"), *(PROJECT / "bench").rglob("*.py")]:
        found = list(private_names.uses(file.read_text(encoding="utf-8")))
        assert not found, f"{file}: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "server._process.kill()", "monkeypatch.setattr(server, '_process', None)", "getattr(server, '_process')",
        "monkeypatch.setattr('package.module._name', None)", "from package.module import _name",
        "class Fake(Server):\n    def stop(self):\n        self._process = None\nserver._other",
    ],
)  # fmt: skip
def test_the_use_of_a_private_name_is_found(source: str) -> None:
    assert len(list(private_names.uses(source))) == 1


def test_library_audit_fails_for_undeclared_library(tmp_path: Path) -> None:
    """Audit a program that needs libc against a control file that does not depend on libc."""
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/true", tmp_path / "bin/true")
    (tmp_path / "control").write_text("Depends: other\n")
    audit = [sys.executable, "packaging/library_audit.py", str(tmp_path), str(tmp_path / "control")]
    done = subprocess.run(audit, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "bin/true needs libc.so.6: package libc6, which debian/control does not depend on" in done.stderr


def test_shellcheck() -> None:
    # SC1091: the verbs are checked on their own. SC2154: they share variables of common.sh.
    run("shellcheck", "--exclude=SC1091,SC2154,SC2034", *SHELL)
    run("shellcheck", "--shell=sh", *POSIX_SHELL)


def test_files_contain_no_path_of_the_checkout() -> None:
    command = ["bash", "-c", ". packaging/common.sh; source_files"]
    files = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        text = (PROJECT / name).read_bytes()
        assert str(PROJECT).encode() + b"/" not in text or str(PROJECT) == "/", name


@pytest.mark.needs("root")
def test_build_without_disk_space_fails_with_one_line_and_no_files(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50M", "tmpfs", small], check=True)
    try:
        environment = os.environ | {"CITADEL_BUILD_CACHE": str(small), "CITADEL_VERSION": "0.0.1-1+full"}
        done = subprocess.run(
            ["./build.sh"], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 1
        assert "needs 3000 MB" in done.stderr.splitlines()[-1]
        assert not list((PROJECT / "dist").glob("*0.0.1*"))
    finally:
        subprocess.run(["umount", small], check=True)
