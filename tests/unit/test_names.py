"""Names of instances and keys on the command line, and of files in /etc/default."""

import click
import pytest

from hxp_enterprise_llm.cli import strays
from hxp_enterprise_llm.cli.commands import NAME
from hxp_enterprise_llm.cli.names import Assignment, SettingKey

from .conftest import Root


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("test", "test"),
        ("citadel-llm@test", "test"),
        ("citadel-llm@test.service", "test"),
        ("test.service", "test.service"),
        ("citadel-llm", "citadel-llm"),
        ("citadel-llm@", ""),
    ],
)
def test_unit_name_is_converted_to_instance_name(given: str, meant: str) -> None:
    assert NAME.convert(given, None, None) == meant


def test_invalid_names_are_reported_and_leftover_files_are_not(root: Root) -> None:
    for name in ("good", "good~", "good.dpkg-old", "good.bak", "good.swp", "a b", "é", "x" * 65, "-x", ""):
        root.instance(name, "PORT=1\n")
    said = strays.warnings(str(root))
    assert [warning.split("' is ignored")[0].rpartition("citadel-llm-")[2] for warning in said] == [
        "", "-x", "a b", "x" * 65, "é",
    ]  # fmt: skip
    assert all(strays.RULE in warning for warning in said)


def test_missing_defaults_directory_gives_no_warnings(root: Root) -> None:
    root.defaults.rmdir()
    assert strays.warnings(str(root)) == []


def test_an_assignment_is_a_key_and_a_value() -> None:
    assert Assignment().convert("VLLM_ARGS=--seed=1", None, None) == ("VLLM_ARGS", "--seed=1")
    for wrong in ("PORT", "1=2", "a b=c", "=1"):
        with pytest.raises(click.BadParameter):
            Assignment().convert(wrong, None, None)


def test_the_shell_completes_keys() -> None:
    command = click.Command("set", params=[click.Argument(["values"], type=Assignment())])
    context = click.Context(command)
    offered = Assignment().shell_complete(context, command.params[0], "MAX_")
    values = [item.value for item in offered]
    assert values == ["MAX_TASKS=", "MAX_MODEL_LEN=", "MAX_REQUEST_MB=", "MAX_CONNECTIONS="]
    offered = SettingKey().shell_complete(context, command.params[0], "VLLM")
    assert [item.value for item in offered] == ["VLLM_ARGS"]
