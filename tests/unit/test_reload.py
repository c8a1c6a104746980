"""How a reload is asked for: who is heard, what is handed over, what is answered. No process: both ends are here."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hxp_enterprise_llm import reload_command
from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.services.core.service_manager import reload
from hxp_enterprise_llm.services.core.service_manager.reload import Request, Requests
from hxp_enterprise_llm.utils import credentials
from hxp_enterprise_llm.utils.credentials import LARGEST_BYTES, MISSING
from hxp_enterprise_llm.utils.errors import SettingsRefused

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


def asked(directory: Path, do: Callable[[Request], str], pid: int = 0, files: dict[str, str] | None = None) -> str:
    """What the command says of a reload that a main process, which is this one, treats with `do`."""

    async def serve() -> str:
        async with Requests(directory) as requests:
            asking = asyncio.create_task(
                asyncio.to_thread(reload_command.ask, str(directory), pid or os.getpid(), files or {})
            )
            waiting = asyncio.create_task(requests.due.wait())
            await asyncio.wait((asking, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                request = requests.take()
                request.answer(do(request))
            return await asyncio.wait_for(asking, 30)

    return asyncio.run(serve())


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "ROOT", os.getuid())


def test_files_of_any_size_arrive_and_the_answer_comes_back(tmp_path: Path) -> None:
    files = {"api-key": "k\n" * 400_000, "tls-key": "\xff\x00"}
    seen: list[dict[str, str]] = []
    assert asked(tmp_path, lambda request: str(seen.append(request.contents) or ""), files=files) == ""
    assert seen == [files]
    assert asked(tmp_path, lambda _: "settings refused: é") == "settings refused: é"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_any_length(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    assert asked(deep, lambda _: "") == ""


def test_nothing_is_told_to_another_process(tmp_path: Path) -> None:
    assert "another process" in asked(tmp_path, lambda _: "", pid=1)


def test_nobody_but_root_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload, "ROOT", os.getuid() + 1)
    with pytest.raises(ConnectionError):
        asked(tmp_path, lambda _: "")
    assert "only root may" in caplog.text


def test_who_waits_when_it_ends_is_told(tmp_path: Path) -> None:
    async def end() -> str:
        async with Requests(tmp_path) as requests:
            asking = asyncio.create_task(asyncio.to_thread(reload_command.ask, str(tmp_path), os.getpid(), {}))
            await requests.due.wait()
        return await asyncio.wait_for(asking, 30)

    assert asyncio.run(end()) == "the service has stopped"


def test_a_second_one_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async def twice() -> list[str]:
        async with Requests(tmp_path) as requests:
            asking: list[Awaitable[str]] = []
            for _ in range(2):
                asking.append(
                    asyncio.create_task(asyncio.to_thread(reload_command.ask, str(tmp_path), os.getpid(), {}))
                )
                await requests.due.wait()
                requests.due.clear()
            requests.take().answer()
            return [await one for one in asking]

    assert asyncio.run(twice()) == ["another reload was asked for before this one was taken up", ""]


def test_what_the_settings_name_is_handed_over(root: Root) -> None:
    for name, content in (("keys", b"k\xff"), ("large", b"")):
        (root.path / name).write_bytes(content)
    os.truncate(root.path / "large", LARGEST_BYTES + 1)
    os.mkfifo(root.path / "pipe")
    root.instance("m", GOOD + f"API_KEY_FILE={root}/keys\nTLS_CERT_FILE={root}/large\nTLS_KEY_FILE={root}/pipe\n")
    assert reload_command.contents("m", str(root)) == {"api-key": "k\xff", "tls-cert": MISSING, "tls-key": MISSING}
    root.instance("m", GOOD + f"API_KEY_FILE={root}/keys\nPORT=none\n")
    assert reload_command.contents("m", str(root)) == {}, "refused settings name nothing"


def test_a_device_is_not_opened_and_a_terminal_does_not_become_roots(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []
    really = os.open

    def note(path: str, flags: int, *more: int) -> int:
        opened.append((path, flags))
        return really(path, flags, *more)

    monkeypatch.setattr("os.open", note)
    assert credentials.read("/dev/null") == MISSING.encode()
    assert opened == []
    (root.path / "keys").write_text("k")
    assert credentials.read(f"{root}/keys") == b"k"
    flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    assert opened == [(f"{root}/keys", os.O_RDONLY | flags)]
    # One that takes its place after it was looked at.
    os.mkfifo(root.path / "pipe")
    monkeypatch.setattr("os.stat", lambda _: os.lstat(f"{root}/keys"))
    assert credentials.read(f"{root}/pipe") == MISSING.encode()


def test_what_takes_a_restart_and_what_no_new_server() -> None:
    old = ServiceConfigSchema(name="m", model="/m", port=11500)
    for changed in ({"port": 11501}, {"host": "::1"}, {"hub_token_file": "/t"}, {"vllm_args": ("--nnodes", "2")}):
        with pytest.raises(SettingsRefused, match="takes a restart"):
            reload.check(old, old.model_copy(update=changed))
    elsewhere = old.model_copy(update={"vllm_args": ("--nnodes", "2")})
    reload.check(elsewhere, old)
    keyed = old.model_copy(update={"api_key_file": "/k", "tls_cert_file": "/c", "tls_key_file": "/k"})
    reload.check(old, keyed)
    assert reload.same_server(old, keyed)
    assert not reload.same_server(old, old.model_copy(update={"max_model_len": 5}))
