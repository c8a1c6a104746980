"""How a reload is asked for: who is heard, what is handed over, what is answered. No process: both ends are here."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certificates as made
import pytest

from hxp_enterprise_llm import reload_command
from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.services.core.service_manager import reload
from hxp_enterprise_llm.services.core.service_manager.credentials import Credentials
from hxp_enterprise_llm.services.core.service_manager.reload import InEffect, Request, Requests
from hxp_enterprise_llm.services.core.service_manager.supervisor import Supervisor
from hxp_enterprise_llm.utils import credentials
from hxp_enterprise_llm.utils.api_keys import digest
from hxp_enterprise_llm.utils.credentials import LARGEST_BYTES, MISSING
from hxp_enterprise_llm.utils.errors import SettingsRefused

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


def asked(directory: Path, do: Callable[[Request], str], pid: int = 0, files: dict[str, str] | None = None) -> str:
    """What the command says of a reload that a main process, which is this one, treats with `do`."""

    async def answer(request: Request) -> None:
        request.answer(do(request))

    async def serve() -> str:
        async with Requests(directory, answer):
            return await asyncio.to_thread(reload_command.ask, str(directory), pid or os.getpid(), files or {})

    return asyncio.run(asyncio.wait_for(serve(), 30))


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
    assert asked(tmp_path, lambda _: "") != ""
    assert "only root may" in caplog.text


def test_who_waits_when_it_ends_is_told(tmp_path: Path) -> None:
    async def end() -> str:
        taken = asyncio.Event()

        async def never(_: Request) -> None:
            taken.set()
            await asyncio.sleep(3600)

        async with Requests(tmp_path, never):
            asking = asyncio.create_task(asyncio.to_thread(reload_command.ask, str(tmp_path), os.getpid(), {}))
            await taken.wait()
        return await asyncio.wait_for(asking, 30)

    assert asyncio.run(end()) == "the service has stopped"


def test_who_is_not_answered_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_command, "ANSWER_SEC", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.bind(str(tmp_path / reload_command.SOCKET))
        deaf.listen()
        assert "has not answered within 0.2 s" in reload_command.ask(str(tmp_path), os.getpid(), {})
    assert "cannot be asked" in reload_command.ask(str(tmp_path), os.getpid(), {})


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), "[]", "7", "no JSON"])
def test_it_listens_on_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: OSError | str
) -> None:
    """Want of file descriptors and messages that are none end nothing."""
    monkeypatch.setattr(reload, "PAUSE_SEC", 0.0)
    texts = [fault] if isinstance(fault, str) else []
    errors = [fault] if isinstance(fault, OSError) else []

    def dump(_: object, stream: Any) -> None:
        stream.write(texts.pop() if texts else "{}")

    async def answer(request: Request) -> None:
        request.answer()

    async def ask() -> list[str]:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept

        async def failing(listener: socket.socket) -> Any:
            if errors:
                raise errors.pop()
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", failing)
        monkeypatch.setattr(reload_command.json, "dump", dump)
        async with Requests(tmp_path, answer):
            return [await asyncio.to_thread(reload_command.ask, str(tmp_path), os.getpid(), {}) for _ in range(2)]

    first, second = asyncio.run(asyncio.wait_for(ask(), 30))
    assert (bool(first), second) == (isinstance(fault, str), "")
    assert caplog.records


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("not foreseen")])
def test_an_answer_that_fails_is_told_and_ends_nothing(tmp_path: Path, fault: Exception) -> None:
    todo = [fault]

    def do(_: Request) -> str:
        if todo:
            raise todo.pop()
        return ""

    async def answer(request: Request) -> None:
        request.answer(do(request))

    async def ask() -> list[str]:
        async with Requests(tmp_path, answer):
            return [await asyncio.to_thread(reload_command.ask, str(tmp_path), os.getpid(), {}) for _ in range(2)]

    first, second = asyncio.run(asyncio.wait_for(ask(), 30))
    assert "cannot be taken up" in first and second == ""


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


def keyed(**more: object) -> ServiceConfigSchema:
    return ServiceConfigSchema(name="m", model="/m", port=11500, api_key_file="/a", **more)  # type: ignore[arg-type]


def request(keys: str, keys_only: bool = False, **more: str) -> tuple[Request, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Request(near, {"api-key": keys, **more}, keys_only), far


def taken_in(now: InEffect, keys: str, keys_only: bool = False) -> bool:
    one, far = request(keys, keys_only)
    with far:
        return asyncio.run(now.take_in(one))


def test_other_keys_count_at_once_and_another_server_when_it_is_its_turn() -> None:
    settings = [keyed()]
    now = InEffect(keyed(), "/m", Credentials((digest("a"),)), lambda: (settings[0], "/m"))
    assert not taken_in(now, "b")
    assert now.credentials.key_digests == (digest("b"),)
    assert taken_in(now, "b"), "a reload without any change is for another server"
    settings[0] = keyed(max_model_len=5)
    assert taken_in(now, "c")
    assert (now.credentials.key_digests, now.config.max_model_len) == ((digest("c"),), None)
    before = now.turn()
    assert (before[0].max_model_len, now.config.max_model_len) == (None, 5)
    now.back(*before)
    assert now.config.max_model_len is None


def test_a_key_that_is_revoked_while_the_settings_change() -> None:
    """Of the settings as they are now it takes nothing, whatever they are."""

    def broken() -> tuple[ServiceConfigSchema, str]:
        raise SettingsRefused([])

    tls = {"tls_cert_file": "/c", "tls_key_file": "/k"}
    now = InEffect(keyed(**tls), "/m", Credentials((digest("a"), digest("b")), made.CERTIFICATE, made.KEY), broken)
    assert not taken_in(now, "b", keys_only=True)
    assert now.credentials == Credentials((digest("b"),), made.CERTIFICATE, made.KEY)
    with pytest.raises(SettingsRefused, match="not there"):
        taken_in(now, MISSING, keys_only=True)
    assert now.credentials.key_digests == (digest("b"),), "a file that is not there opens nothing"
    open_to_all = InEffect(ServiceConfigSchema(name="m", model="/m", port=11500), "/m", Credentials(), broken)
    with pytest.raises(SettingsRefused, match="until a reload"):
        taken_in(open_to_all, "b", keys_only=True)


def test_a_reload_after_a_key_was_revoked_takes_no_other_server() -> None:
    now = InEffect(keyed(), "/m", Credentials((digest("a"), digest("b"))), lambda: (keyed(), "/m"))
    taken_in(now, "b", keys_only=True)
    assert not taken_in(now, "b")


class Server:
    """What a supervisor knows of one."""

    gone = False

    def __init__(self) -> None:
        self.keys: tuple[str, ...] = ()

    async def take(self, credentials: Credentials) -> None:
        self.keys = credentials.key_digests


@pytest.mark.parametrize("keys_only", [True, False])
def test_every_server_hears_of_a_revoked_key_while_another_loads(tmp_path: Path, keys_only: bool) -> None:
    said: list[dict[str, object]] = []
    notifier = SimpleNamespace(send=lambda **state: said.append(state))

    async def ask() -> list[Server]:
        main = Supervisor(
            keyed(), "/m", Credentials((digest("a"), digest("b"))), notifier,  # type: ignore[arg-type]
            reread=lambda: (keyed(max_model_len=None if keys_only else 5), "/m"), run_time=tmp_path,
        )  # fmt: skip
        main._servers = servers = [Server(), Server(), Server()]  # type: ignore[assignment]
        # No part of a start or a stop is told to look for it, as it is while a server loads or retires.
        one, far = request("b", keys_only)
        with far:
            await asyncio.wait_for(main._asked(one), 5)
            assert far.recv(99) == reload_command.TAKEN
        assert main._now.due.is_set() is not keys_only
        return servers  # type: ignore[return-value]

    for server in asyncio.run(ask()):
        assert server.keys[0] == digest("b") and digest("a") not in server.keys
        assert len(server.keys) == 2, "and the main process's own"
    # READY=1 or a status of its own would end the reload that is under way for systemd.
    assert said == ([] if keys_only else [{"RELOADING": 1}])


def supervisor(tmp_path: Path, said: list[dict[str, object]]) -> Supervisor:
    """A main process whose next server is to have other settings."""
    notifier = SimpleNamespace(send=lambda **state: said.append(state))
    main = Supervisor(
        keyed(), "/m", Credentials(), notifier, reread=lambda: (keyed(), "/m"), run_time=tmp_path,  # type: ignore[arg-type]
    )  # fmt: skip
    main._now._wanted = keyed(max_model_len=5), "/m"
    return main


def test_a_reload_that_came_while_an_engine_was_replaced_ends_with_its_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def come_up(*_: object, **__: object) -> bool:
        return True

    async def run() -> list[bool]:
        said: list[dict[str, object]] = []
        main = supervisor(tmp_path, said)
        server = SimpleNamespace(url="http://127.0.0.1:1", watch_engines=lambda: None, open=opened)
        for due in (True, True, False):
            # The first start is one, whatever is due.
            main._now.due.set() if due else main._now.due.clear()
            assert await main._start(server)  # type: ignore[arg-type]
        return ["READY" in state for state in said if str(state.get("STATUS")).startswith("Ready")]

    async def opened() -> None: ...

    monkeypatch.setattr("hxp_enterprise_llm.services.core.service_manager.supervisor.bring_up", come_up)
    assert asyncio.run(run()) == [True, False, True]


def test_settings_that_have_gone_bad_since_the_reload_leave_the_server_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise SettingsRefused([])

    async def run() -> None:
        said: list[dict[str, object]] = []
        main = supervisor(tmp_path, said)
        monkeypatch.setattr(main, "_new_server", refuse)
        server = SimpleNamespace()
        before = main._now.turn()
        with socket.socket() as listener:
            assert await main._replace(server, *before, listener) is server  # type: ignore[arg-type, comparison-overlap]
        assert main._now.config == before[0]
        assert said[-1]["READY"] == 1

    asyncio.run(run())
