"""What `citadel-llm status` prints for people."""

import pytest

from hxp_enterprise_llm.cli import output
from hxp_enterprise_llm.control.service import Service


def lines(capsys: pytest.CaptureFixture[str], properties: dict[str, object]) -> dict[str, str]:
    """The lines of an instance without settings, by their titles."""
    output.one_service(Service.seen("a", None, (), properties, None))
    shown = [line.strip().partition(":") for line in capsys.readouterr().out.splitlines()[1:]]
    return {title: text.strip() for title, _, text in shown}


def test_status_has_no_line_without_content(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, {"ActiveState": "inactive", "MemoryMax": 2**30})
    assert (found["State"], found["Memory"]) == ("stopped, not enabled", "up to 1.0 GB")
    assert not {"Process", "Tasks"} & found.keys()
    found = lines(
        capsys,
        {"ActiveState": "active", "MainPID": 7, "TasksCurrent": 3, "TasksMax": 9, "StateChangeTimestamp": 10**15},
    )
    assert found["State"].startswith("ready since 20")
    assert (found["Process"], found["Tasks"]) == ("7", "3 of 9")
