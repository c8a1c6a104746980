"""The generator and the reload request run with Debian's Python and the files that the package installs for it."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
INSTALLED = "/usr/lib/citadel-llm"


@pytest.mark.parametrize(
    ("program", "arguments", "status"),
    [("citadel-llm-generator", ["--help"], 0), ("citadel-llm-generator", ["--dry-run"], 0), ("reload", ["test"], None)],
)
def test_programs_run_with_only_the_installed_modules(
    program: str, arguments: list[str], status: int | None, tmp_path: Path
) -> None:
    for line in (PROJECT / "debian/citadel-llm.install").read_text(encoding="utf-8").splitlines():
        source, target = line.split()
        if f"/{target}".startswith(INSTALLED) and source.endswith(".py"):
            (tmp_path / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / source, tmp_path / target)
    text = (PROJECT / "systemd" / program).read_text(encoding="utf-8")
    assert f'"{INSTALLED}"' in text
    (tmp_path / program).write_text(text.replace(INSTALLED, f"{tmp_path}{INSTALLED}"))
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", tmp_path / program, *arguments], capture_output=True, text=True, check=False
    )
    assert "ImportError" not in done.stderr and "ModuleNotFoundError" not in done.stderr
    assert status is None or done.returncode == status, done.stderr
