"""The entry of a unit's main process: what it leaves behind when a start fails."""

import json
from pathlib import Path

import pytest

from hxp_enterprise_llm.protocol import state
from hxp_enterprise_llm.protocol.state import Phase
from hxp_enterprise_llm.settings.errors import ExitStatus
from hxp_enterprise_llm.supervisor.__main__ import main


def test_a_failed_start_leaves_its_reason_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "nothing"
    directory.mkdir()
    (directory / "pid").write_text("an earlier run")
    (directory / state.NAME).write_text(json.dumps({"phase": "ready", "invocation": "an earlier run"}))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    monkeypatch.setenv("INVOCATION_ID", "f" * 32)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert main(["no-such-instance"]) == ExitStatus.CONFIG
    found = state.read(str(tmp_path), "nothing")
    assert found and (found.phase, found.invocation) == (Phase.FAILED, "f" * 32)
    assert "/etc/default/citadel-llm-no-such-instance" in found.reason
    assert [file.name for file in directory.iterdir()] == [state.NAME]


def test_a_check_writes_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert main(["--check", "no-such-instance"]) == ExitStatus.CONFIG
    assert not list(tmp_path.iterdir())
