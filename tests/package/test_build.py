"""The first steps of a build: where wheels are fetched from, and which files are the sources. Nothing is built here."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
INDEX = "https://download.pytorch.org/whl/cpu"
PIP = """#!/bin/sh
case $1 in
config) cat "$0.conf" ;;
*) echo "$@" >"$0.asked" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of a few files, with the scripts of the real one, and a cache with a pip that fetches nothing."""
    root = tmp_path / "project"
    shutil.copytree(PROJECT / "packaging", root / "packaging")
    (root / "requirements").mkdir()
    (root / "requirements/cpu.txt").write_text("torch==1.0+cpu --hash=sha256:0\n")
    (root / "requirements/demo.txt").write_text("gguf==1.0 --hash=sha256:0\n")
    pip = tmp_path / "cache/tools/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.write_text(PIP)
    pip.chmod(0o755)
    pip.with_name("pip.conf").write_text("")
    return root


def run(project: Path, command: str, **environment: str) -> str:
    # Skip the check for disk space: the cache of this test is small.
    script = f"""
        set -euo pipefail
        . packaging/common.sh
        . packaging/deb.sh
        need_space() {{ :; }}
        install_packages() {{ echo "$@" >>"$CACHE/installed"; }}
        {command}
    """
    kept = {"PATH": os.environ["PATH"], "CITADEL_BUILD_CACHE": str(project.parent / "cache")}
    done = subprocess.run(
        ["bash", "-c", script], cwd=project, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fetched(project: Path, lock: str = "cpu", **environment: str) -> list[str]:
    """The arguments of the pip that fetches the wheels of a lock."""
    run(project, f"fetch_wheels {lock}", **environment)
    return (project.parent / "cache/tools/bin/pip.asked").read_text().split()


def test_torch_comes_from_its_own_index_by_default(project: Path) -> None:
    words = fetched(project)
    assert words[words.index("--extra-index-url") + 1] == INDEX
    assert "--require-hashes" in words


@pytest.mark.parametrize(
    "line",
    ["global.find-links='/srv/wheels'", ":env:.extra-index-url='file:///srv/index'", "global.index-url='file:///srv'"],
)
def test_pip_configuration_overrides_the_torch_index(project: Path, line: str) -> None:
    configuration = project.parent / "cache/tools/bin/pip.conf"
    configuration.write_text(f"global.timeout='60'\n{line}\n")
    assert "--extra-index-url" not in fetched(project)


def test_torch_index_can_be_changed_or_disabled(project: Path) -> None:
    assert "file:///srv/torch" in fetched(project, CITADEL_TORCH_INDEX="file:///srv/torch")
    shutil.rmtree(project.parent / "cache/wheels")
    assert "--extra-index-url" not in fetched(project, CITADEL_TORCH_INDEX="")


def test_lock_without_torch_uses_no_extra_index(project: Path) -> None:
    assert "--extra-index-url" not in fetched(project, "demo")


@pytest.mark.needs("root")
def test_pip_itself_comes_with_the_packages_of_the_distribution(project: Path) -> None:
    shutil.rmtree(project.parent / "cache/tools")
    run(project, "prepare_tools")
    assert "python3-venv" in (project.parent / "cache/installed").read_text()
    assert (project.parent / "cache/tools/bin/pip").exists()


def test_the_sources_are_the_same_with_and_without_git(project: Path) -> None:
    (project / ".gitignore").write_text((PROJECT / ".gitignore").read_text())
    for ignored in ("dist/a.deb", "x/__pycache__/a.pyc", ".mypy_cache/a", "a.egg-info/b"):
        (project / ignored).parent.mkdir(parents=True, exist_ok=True)
        (project / ignored).write_text("")
    unpacked = sorted(run(project, "source_files").split("\0"))
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    if os.geteuid() == 0:
        # As with `sudo ./build.sh`: the checkout belongs to another user.
        subprocess.run(["chown", "-R", "nobody", project], check=True)
    assert sorted(run(project, "source_files").split("\0")) == unpacked
    assert "packaging/common.sh" in unpacked and "dist/a.deb" not in unpacked


def test_no_lock_names_an_index() -> None:
    for lock in PROJECT.glob("requirements/*.txt"):
        assert "://" not in lock.read_text(encoding="utf-8"), lock


def test_package_and_distribution_have_the_same_version() -> None:
    first = (PROJECT / "debian/changelog").read_text(encoding="utf-8").splitlines()[0]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert first.startswith(f"citadel-llm ({project['version']}-")
