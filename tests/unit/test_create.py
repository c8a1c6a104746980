import errno
import os
import socket
from pathlib import Path

import click
import pytest

from hxp_enterprise_llm.cli.create import create, free_port, values
from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.errors import CitadelError, ExitStatus, SettingsRefused

from .conftest import Root


def test_create_writes_valid_settings_with_a_free_port(root: Root) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT=11400\n")
    values = {"MODEL": "/srv/m", "PORT": str(free_port(str(root))), "VLLM_ARGS": "--seed 1"}
    file = create("b", values, str(root))
    assert file.endswith("citadel-llm-b")
    settings, warnings = config.load("b", str(root))
    assert (settings.port, settings.vllm_args, warnings) == (11401, ("--seed", "1"), [])


@pytest.mark.parametrize(
    ("value", "received"),
    [
        ('--hf-overrides={"a":1}', ('--hf-overrides={"a":1}',)),
        ('--hf-overrides {"a": "b c"} --seed 1', ("--hf-overrides", '{"a": "b c"}', "--seed", "1")),
        ("--chat-template 'a b.jinja'", ("--chat-template", "a b.jinja")),
    ],
)
def test_created_flags_reach_the_engine_as_given(root: Root, value: str, received: tuple[str, ...]) -> None:
    create("b", {"MODEL": "/srv/m", "PORT": "11401", "VLLM_ARGS": value}, str(root))
    settings, warnings = config.load("b", str(root))
    assert (settings.vllm_args, warnings) == (received, [])


def test_free_port_skips_listeners_and_monitor_ports(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        monkeypatch.setattr("hxp_enterprise_llm.cli.create.FIRST_PORT", taken)
        root.host(f"HEALTH_PORT={taken + 1}\nMETRICS_PORT={taken + 2}\n")
        assert free_port(str(root)) > taken + 2


def test_options_become_settings(root: Root) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT=11400\n")
    assert values("/srv/m", None, [], str(root)) == {"MODEL": "/srv/m", "PORT": str(free_port(str(root)))}
    # 0 is no port, and create refuses it.
    assert values("/srv/m", 0, [], str(root))["PORT"] == "0"
    assert list(values("/srv/m", None, [("OMP_X", "1"), ("PORT", "11500")], str(root)).values()) == [
        "/srv/m",
        "1",
        "11500",
    ]


@pytest.mark.parametrize(
    ("port", "others"),
    [(11500, [("PORT", "11501")]), (None, [("MODEL", "/srv/n")]), (None, [("OMP_X", "1"), ("OMP_X", "2")])],
)
def test_key_given_twice_is_refused(root: Root, port: int | None, others: list[tuple[str, str]]) -> None:
    with pytest.raises(click.UsageError, match=f"{others[0][0]} is given twice"):
        values("/srv/m", port, others, str(root))


def test_error_of_the_host_file_keeps_its_place(root: Root) -> None:
    root.host("HEALTH_PORT=none\n")
    with pytest.raises(SettingsRefused, match=r"^.*/etc/default/citadel-llm:1: HEALTH_PORT"):
        create("b", {"MODEL": "/srv/m", "PORT": "11401"}, str(root))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("a", {"MODEL": "/srv/m", "PORT": "11401"}, "the instance a already exists"),
        ("b", {"MODEL": "/srv/m", "PORT": "11400"}, "PORT=11400 is the port of a"),
        ("b", {"MODEL": "/srv/m", "PORT": "80"}, "PORT=80 is refused"),
        ("b", {"MODEL": "/srv/m", "PORT": "11401", "HOST": "a\nb"}, "HOST=.*: the value contains a line break"),
        (
            "b",
            {"MODEL": "/srv/m", "PORT": "11401", "X": "1\nALLOW_DOWNLOAD=yes"},
            "X=.*: the value contains a line break",
        ),
        ("b", {"MODEL": "/srv/m", "PORT": "11401", "1X": "1"}, "is not a key"),
        ("b", {"MODEL": "/srv/m", "PORT": "11401", "HOST": "a"}, "^HOST=a is refused"),
        ("b", {"MODEL": "/srv/m", "PORT": "11401", "OMP_X": "$HOME"}, r"OMP_X=\$HOME is refused"),
        ("b", {"MODEL": "/srv/m", "PORT": "0"}, "PORT=0 is refused"),
        ("b.service", {"MODEL": "/srv/m", "PORT": "11401"}, "is not an instance name"),
        ("../b", {"MODEL": "/srv/m", "PORT": "11401"}, "is not an instance name"),
    ],
)
def test_refused_create_leaves_no_file(root: Root, name: str, values: dict[str, str], words: str) -> None:
    root.instance("a", "MODEL=/srv/m\nPORT=11400\n")
    before = sorted(root.defaults.iterdir())
    with pytest.raises(CitadelError, match=words) as refused:
        create(name, values, str(root))
    assert refused.value.exit_status is (ExitStatus.FAILED if name == "a" else ExitStatus.CONFIG)
    assert sorted(root.defaults.iterdir()) == before


def test_create_on_full_disk_fails_and_leaves_no_file(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, *_: object, **__: object) -> None:
        file.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CitadelError, match="citadel-llm-b: No space left on device"):
        create("b", {"MODEL": "/srv/m", "PORT": "11401"}, str(root))
    assert list(root.defaults.iterdir()) == []
