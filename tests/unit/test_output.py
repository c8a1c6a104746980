"""What the command prints for people."""

import ast
import json
from pathlib import Path

import pytest

from hxp_enterprise_llm.cli import output
from hxp_enterprise_llm.control.service import Service
from hxp_enterprise_llm.settings.values import HostLabels


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


HOSTILE = "\x1b]0;title\x07 \x9b31m \x7f \u202eX\nforged: line"
ESCAPED = r"\x1b]0;title\x07 \x9b31m \x7f \u202eX\nforged: line"


def test_printed_text_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a ", output.Coloured(HOSTILE, "red"))
    output.note(HOSTILE)
    output.table(("NAME", "X"), [(HOSTILE, "1"), ("b", output.Coloured(HOSTILE, None))])
    output.complain(HOSTILE)
    said = capsys.readouterr()
    first, title, *rows = said.out.splitlines()
    assert (first, title) == (f"a {ESCAPED}", f"{'NAME':{len(ESCAPED)}}  X")
    assert rows == [f"{ESCAPED}  1", f"{'b':{len(ESCAPED)}}  {ESCAPED}"]
    assert said.err.splitlines()[0] == ESCAPED
    assert "\x1b" not in said.err and "\x9b" not in said.err and "\u202e" not in said.err


def test_json_contains_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    output.as_json({"text": HOSTILE})
    said = capsys.readouterr().out
    assert said.replace("\n", "").isascii() and said.replace("\n", "").isprintable()
    assert json.loads(said) == {"text": HOSTILE}


def test_reason_from_systemd_and_findings_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    properties = {"ActiveState": "active", "StatusText": HOSTILE}
    service = Service.seen("a", None, (HOSTILE,), properties, None)
    output.one_service(service)
    output.services([service], HostLabels(HOSTILE, HOSTILE))
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable() and "forged" not in [
        line.partition(":")[0] for line in said.splitlines()
    ]


def test_only_one_module_of_the_command_prints() -> None:
    """Others would have to remember to escape."""
    for file in Path(output.__file__).parent.glob("*.py"):
        if file.name == "output.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "click.echo", "click.secho", "click.style", "sys.stdout.write"), file
