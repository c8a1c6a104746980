"""Bytes that are not UTF-8 in settings, in names of files and in root's files cause a readable error."""

import io
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from hxp_enterprise_llm.cli import keys, output, strays
from hxp_enterprise_llm.cli.commands import cli
from hxp_enterprise_llm.engine import model_directory
from hxp_enterprise_llm.generator import command, drop_ins
from hxp_enterprise_llm.protocol import credentials, state
from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.credential_files import API_KEY
from hxp_enterprise_llm.settings.errors import CitadelError, ExitStatus, ModelMissing, NoSuchInstance, SettingsRefused
from hxp_enterprise_llm.settings.grammar import printable, printable_line, shown
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.system.journal import JournalHandler
from hxp_enterprise_llm.system.notify import Notifier
from hxp_enterprise_llm.system.processes import run

from .conftest import Root

NAME = os.fsdecode(b"caf\xe9")
"""A name in Latin-1, as Python decodes it."""


@pytest.fixture
def not_utf8(root: Root) -> Root:
    (root.defaults / "citadel-llm-a").write_bytes(b"MODEL=/srv/m\nPORT=11400\nOMP_X='caf\xe9'\n")
    (root.defaults / f"citadel-llm-{NAME}").write_bytes(b"MODEL=/srv/m\nPORT=11401\n")
    (root.defaults / "citadel-llm-b").write_bytes(b"MODEL=/srv/m\nPORT=11402\n")
    return root


def test_escapes_show_the_bytes() -> None:
    assert printable(f"{NAME}\tx\n\x1b[31m\ud800 é") == "caf\\xe9\tx\n\\x1b[31m\\ud800 é"
    assert shown("100\n200") == printable_line("100\n200") == "100\\n200"
    assert printable("\x9b1m\x7f\u202eX\u2066\u200f") == "\\x9b1m\\x7f\\u202eX\\u2066\\u200f"


def test_file_or_name_that_is_not_utf8_is_refused_with_its_place(not_utf8: Root) -> None:
    with pytest.raises(SettingsRefused) as refused:
        config.load("a", str(not_utf8))
    assert [(finding.file, finding.line) for finding in refused.value.findings] == [
        (str(not_utf8.defaults / "citadel-llm-a"), 3)
    ]
    with pytest.raises(SettingsRefused) as refused:
        config.load(NAME, str(not_utf8))
    assert refused.value.exit_status is ExitStatus.CONFIG
    str(refused.value).encode()
    assert "caf\\xe9" in str(refused.value)
    assert config.instance_names(str(not_utf8)) == ["a", "b"]
    (warning,) = strays.warnings(str(not_utf8))
    assert "citadel-llm-caf\\xe9' is ignored" in warning


def test_generator_still_writes_drop_ins_of_other_instances(
    not_utf8: Root, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    said: list[object] = []
    drop_ins.generate(str(not_utf8.path / "out"), str(not_utf8), said.append)
    made = {path.parent.name for path in (not_utf8.path / "out").rglob("*.conf")}
    assert made == {"citadel-llm@a.service.d", "citadel-llm@b.service.d"}
    assert len(said) == 1
    str(said[0]).encode()
    assert command.explain([NAME], str(not_utf8), said.append) == ExitStatus.NO_SUCH_INSTANCE
    str(said[1]).encode()


def test_weight_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / f"{NAME}.safetensors").touch()
    with pytest.raises(ModelMissing) as refused:
        model_directory.find_model(ServiceConfigSchema(name="a", model=str(tmp_path), port=11400))
    assert refused.value.exit_status is ExitStatus.CONFIG
    assert "caf\\xe9.safetensors" in str(refused.value)


def test_key_file_that_is_not_utf8_is_refused_and_comments_are_kept(root: Root) -> None:
    settings = ServiceConfigSchema(name="a", model="/m", port=11400, api_key_file="/etc/a.keys")
    with pytest.raises(SettingsRefused, match="API_KEY_FILE"):
        credentials.validate(settings, {API_KEY: b"caf\xe9".decode("latin-1")})
    file = root.path / "a.keys"
    (root.path / "etc/citadel-llm").mkdir()
    file.write_bytes(b"# caf\xe9\n")
    root.instance("a", f"MODEL=/srv/m\nPORT=11400\nAPI_KEY_FILE={file}\n")
    keys.add("a", "alice", str(root))
    assert file.read_bytes().startswith(b"# caf\xe9\nsha256:")


def test_unknown_name_that_is_not_utf8_is_reported() -> None:
    done = CliRunner().invoke(cli, ["show", NAME])
    assert isinstance(done.exception, NoSuchInstance)
    str(done.exception).encode()


def test_error_with_a_name_that_is_not_utf8_is_printed_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    output.complain(f"{NAME}\x1b[31m")
    stream.seek(0)
    assert stream.read() == "citadel-llm: caf\\xe9\\x1b[31m\n"
    str(CitadelError(NAME)).encode()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        yield receiver


def test_systemd_and_journal_get_escaped_text(tmp_path: Path, receiver: socket.socket) -> None:
    Notifier(str(tmp_path / "notify")).send(STATUS=f"Loading {NAME}")
    assert receiver.recv(100).startswith(b"STATUS=Loading caf\\")
    record = logging.makeLogRecord({"msg": f"Loading {NAME}", "levelno": logging.INFO})
    JournalHandler(NAME).emit(record)


def test_the_state_file_gets_it_escaped(tmp_path: Path) -> None:
    file = state.StateFile(tmp_path)
    file.failed("engine-died", NAME)
    file.enter(state.Phase.LOADING, NAME, state.LastReload(outcome=state.ReloadOutcome.REFUSED, at=1, reason=NAME))
    found = state.read(str(tmp_path.parent), tmp_path.name)
    assert found and found.last_failure and found.last_reload
    for text in (found.reason, found.last_failure.reason, found.last_reload.reason):
        assert text == "caf\\udce9"


@pytest.mark.starts_processes
def test_output_of_a_program_that_is_not_utf8_is_escaped() -> None:
    assert run(["/bin/echo", NAME], 60) == (0, "caf\\xe9\n")


def test_json_for_programs_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    output.as_json({"name": NAME})
    assert json.loads(capsys.readouterr().out) == {"name": NAME}
