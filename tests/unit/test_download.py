"""The process that downloads, as the command sees it: its messages are hostile, and it ends with the command."""

import os
import sys
from collections.abc import Iterable

import pytest

from hxp_enterprise_llm.cli import download, sandbox
from hxp_enterprise_llm.cli.pull import MOST_LINES, PASSED_ON, follow
from hxp_enterprise_llm.engine.model_directory import MODELS
from hxp_enterprise_llm.protocol.download import Arrived, Begun, Done, Failed, Job, Message, PullFailed
from hxp_enterprise_llm.settings.errors import NotPermitted
from hxp_enterprise_llm.system import isolation
from hxp_enterprise_llm.system.processes import conversation


def lines(*messages: Message | bytes) -> list[bytes]:
    return [one if isinstance(one, bytes) else one.model_dump_json().encode() + b"\n" for one in messages]


def test_progress_is_shown_and_the_result_returned(capsys: pytest.CaptureFixture[str]) -> None:
    begun = Begun(number=1, count=2, path="a.safetensors", size=60_000_000, arrived=0)
    assert follow(lines(begun, Arrived(arrived=5), Done(wrong=("b",))), "org/m") == Done(wrong=("b",))
    assert capsys.readouterr().err == "1/2 a.safetensors (0.06 GB)\n"


def test_failure_becomes_the_error_that_it_was() -> None:
    with pytest.raises(NotPermitted, match="no"):
        follow(lines(Failed(code="not-permitted", message="no")), "org/m")
    with pytest.raises(PullFailed, match=r"^a\\x1b\\nforged$"):
        follow(lines(Failed(code="other", message="a\x1b\nforged")), "org/m")


def test_process_without_result_is_no_success() -> None:
    assert follow(lines(Begun(number=1, count=1, path="a", size=1, arrived=0)), "org/m") is None
    assert follow([], "org/m") is None


def test_other_lines_are_escaped_and_limited(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = b"\x1b]0;title\x07 \x9b31m\n"
    begun = Begun(number=1, count=1, path="\x1b]0;t\x07\u202e", size=1 << 62, arrived=1 << 61)
    odd = [b'{"kind": "arrived", "arrived": -1}\n', b'{"kind": "none"}\n', b"[" * 60_000 + b"\n", b"\xff\xfe\n", b"\n"]
    assert follow(lines(begun, *odd, *[hostile] * 2 * MOST_LINES), "org/m") is None
    said = capsys.readouterr().err
    assert said.replace("\n", "").isprintable()
    assert "citadel-llm: \\x1b]0;title\\x07 \\x9b31m\n" in said
    assert len(said.splitlines()) == 1 + MOST_LINES


def test_token_is_not_shown_with_the_job() -> None:
    job = Job(repository="org/m", endpoint=None, token="hf_secret", verify=False, environment={"https_proxy": "secret"})  # noqa: S106
    assert "secret" not in repr(job)
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_only_variables_for_the_library_are_passed_on() -> None:
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_ENDPOINT", "https_proxy", "NO_PROXY", "SSL_CERT_FILE"):
        assert PASSED_ON.fullmatch(name)
    for name in ("HF_TOKEN", "PATH", "LD_PRELOAD", "PYTHONPATH", "AWS_SECRET_ACCESS_KEY", "my_https_proxy"):
        assert not PASSED_ON.fullmatch(name)


def test_unit_may_write_the_models_only_for_a_download() -> None:
    for writable, expected in ((True, f"BindPaths={MODELS}"), (False, f"BindReadOnlyPaths={MODELS}")):
        command = sandbox.command("x.service", "agent0", MODELS, writable)
        properties = [word.removeprefix("--property=") for word in command if word.startswith("--property=")]
        assert "User=agent0" in properties and "ProtectSystem=strict" in properties
        refused = " ".join(each for each in properties if each.startswith("SystemCallFilter=~")).split()
        assert {"memfd_create", "inotify_init", "inotify_init1"} <= {*refused}
        assert [each for each in properties if str(MODELS) in each] == [expected, f"NoExecPaths={MODELS}"]


def test_download_isolates_itself_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Isolated(Exception):
        pass

    def enter(ports: Iterable[int] | None) -> None:
        assert ports is not None and not [*ports], "it listens on no port"
        raise Isolated

    monkeypatch.setattr(isolation, "enter", enter)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Isolated):
        download.main()


@pytest.mark.starts_processes
def test_program_ends_when_its_input_is_closed() -> None:
    program = [sys.executable, "-c", "import sys; print(sys.stdin.readline().upper(), flush=True); sys.stdin.read()"]
    with conversation(program) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"word\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"WORD\n"
        assert os.getsid(process.pid) == process.pid, "Ctrl-C would reach it"
    assert process.returncode == 0


@pytest.mark.starts_processes
def test_interrupted_command_leaves_no_program() -> None:
    with pytest.raises(KeyboardInterrupt), conversation([sys.executable, "-c", "input(); input()"]) as process:
        raise KeyboardInterrupt
    assert process.returncode is not None
