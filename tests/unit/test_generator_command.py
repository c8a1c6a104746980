"""The generator as systemd runs it, and its command line for administrators."""

import os
import stat

import pytest

from hxp_enterprise_llm.generator import command
from hxp_enterprise_llm.generator.drop_ins import generate

from .conftest import Root
from .generated import GOOD, made, path_of


def test_generator_writes_bounded_number_of_lines_to_kernel_log(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        root.instance(f"m{number:02}", "PORT=\u202e\n" + GOOD + "A" * 4000 + "=1\n")
    log = root.path / "kmsg"
    log.touch()
    monkeypatch.setattr(command, "KERNEL_LOG", str(log))
    monkeypatch.setenv("SYSTEMD_SCOPE", "system")
    monkeypatch.setattr(command, "generate", lambda directory, report: generate(directory, str(root), report))
    directory = str(root.path / "run")
    assert command.main([directory, directory + ".early", directory + ".late"]) == 0
    lines = log.read_bytes().splitlines()
    assert len(lines) == command.KERNEL_LOG_LINES + 1
    assert all(line.startswith(b"<4>citadel-llm-generator: ") and len(line) < 992 for line in lines)
    assert lines[-1].endswith(b"and 16 more findings; citadel-llm check lists all")
    assert log.read_bytes().isascii()
    assert capsys.readouterr() == ("", "")


def test_a_missing_kernel_log_is_no_error(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root.instance("m", "PORT=1\n")
    monkeypatch.setattr(command, "KERNEL_LOG", str(root.path / "none"))
    monkeypatch.setenv("SYSTEMD_SCOPE", "system")
    monkeypatch.setattr(command, "generate", lambda directory, report: generate(directory, str(root), report))
    assert command.main([str(root.path / "run")]) == 0
    assert "PORT=1 is refused" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--nonsense"], ["--explain", "a", "b"], ["--dry-run", "x"]])
def test_wrong_arguments_print_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith("Usage: citadel-llm-generator NORMAL-DIRECTORY")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    assert "--explain" in capsys.readouterr().out


def test_dry_run_prints_the_files_of_a_run(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    root.instance("m", GOOD + "HOST=192.0.2.7\n")
    root.instance("bad", "nonsense\n")
    assert command.dry_run(str(root), print) == 0
    printed = capsys.readouterr().out
    assert not (root.path / "run").exists()
    written, _ = made(root)
    assert len(written) == 3
    for path, text in written.items():
        assert f"# /run/systemd/generator/{path}\n{text}" in printed


def test_explain_names_the_source_of_each_directive(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    root.host("DEFAULT_CPU_CORES=3\n")
    file = root.instance("m", GOOD + "MEMORY_LIMIT_GB=1\nREQUIRES=n\n")
    assert command.explain(["m"], str(root), print) == 0
    lines = {line.split("=")[0]: line.split(maxsplit=1)[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["MemoryMax"] == [f"MEMORY_LIMIT_GB {file}:3"]
    assert lines["CPUQuota"] == [f"CPU_CORES {root.defaults}/citadel-llm:1"]
    assert lines["TasksMax"] == ["MAX_TASKS built-in"]


def test_explain_names_source_of_limits_for_refused_file(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    root.host("DEFAULT_CPU_CORES=3\n")
    root.instance("m", GOOD + "CPU_CORES=9\nMEMORY_LIMIT_GB=x\n")
    assert command.explain([], str(root), print) == 0
    printed = capsys.readouterr().out
    assert "MEMORY_LIMIT_GB=x is refused" in printed
    assert "whose file is refused" in printed
    assert f"CPU_CORES {root.defaults}/citadel-llm:1\n" in printed


@pytest.mark.parametrize("name", ["none", "../default/citadel-llm", "-x", "%n", ""])
def test_explain_refuses_unknown_instance(root: Root, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.explain([name], str(root), print) == 4
    assert "there is no instance" in capsys.readouterr().out


def test_drop_ins_are_world_readable_and_writable_by_owner_only(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.instance("m", GOOD)
    monkeypatch.setattr(command, "generate", lambda directory, report: generate(directory, str(root), report))
    before = os.umask(0o077)
    try:
        command.main([str(root.path / "run")])
    finally:
        os.umask(before)
    file = root.path / "run" / path_of("m")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o755
