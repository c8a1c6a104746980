"""Reload requests: permission, files that are sent, and answers. Both ends run in the test's own process."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certificates as made
import pytest

from hxp_enterprise_llm.protocol import reload_request
from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.settings import credential_files
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.settings.credential_files import LARGEST_BYTES, MISSING
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.supervisor import reload
from hxp_enterprise_llm.supervisor.reload import InEffect, Request, Requests

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


def asked(directory: Path, do: Callable[[Request], str], pid: int = 0, files: dict[str, str] | None = None) -> str:
    """The command's result for a reload that the main process, which is this process, handles with `do`."""

    async def answer(request: Request) -> None:
        request.answer(do(request))

    async def serve() -> str:
        async with Requests(directory, answer):
            return await asyncio.to_thread(reload_request.ask, str(directory), pid or os.getpid(), files or {})

    return asyncio.run(asyncio.wait_for(serve(), 60))


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "ROOT", os.getuid())


def test_reload_request_carries_files_of_any_size_and_the_answer(tmp_path: Path) -> None:
    files = {"api-key": "k\n" * 400_000, "tls-key": "\xff\x00"}
    seen: list[dict[str, str]] = []

    def take(request: Request) -> str:
        seen.append(request.contents)
        return ""

    assert asked(tmp_path, take, files=files) == ""
    assert seen == [files]
    assert asked(tmp_path, lambda _: "settings refused: é") == "settings refused: é"
    assert list(tmp_path.iterdir()) == []


def test_directories_go_back_to_the_user_of_the_main_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root.
    monkeypatch.setattr(reload_request, "ROOT", -1)
    cache, own = tmp_path / "cache", tmp_path.stat()
    (cache / "inner").mkdir(parents=True)
    for file in (cache / "file", cache / "inner/file", tmp_path / "outside"):
        file.touch()
    (cache / "link").symlink_to(tmp_path)
    (tmp_path / "private").symlink_to(cache)
    changed: list[str] = []
    to = own.st_uid + 1, 9

    def chown(directory: int, name: str, user: int, group: int) -> None:
        assert (user, group) == to
        changed.append(str(Path(f"/proc/self/fd/{directory}").readlink() / name))

    reload_request.give_back(own.st_uid, 9, "", [str(cache)], chown)
    assert not changed
    reload_request.give_back(own.st_uid + 1, 9, "", [str(tmp_path / "private")], chown)
    everything = {str(cache / name) for name in ("", "file", "inner", "inner/file", "link")}
    assert {*changed} == everything
    changed.clear()
    # The main process sees another owner than there is on the disk.
    place = tmp_path / f"root{cache}"
    place.parent.mkdir(parents=True)
    other = tmp_path / "other" if os.getuid() == 0 else Path("/")
    if os.getuid() == 0:
        other.mkdir()
        os.chown(other, 1, 1)
    place.symlink_to(other)
    to = (reload_request.NOBODY, reload_request.NOBODY)
    reload_request.give_back(own.st_uid + 2, 9, str(tmp_path / "root"), [str(cache)], chown)
    assert {*changed} == everything
    changed.clear()
    monkeypatch.setattr(reload_request, "ROOT", own.st_uid)
    reload_request.give_back(own.st_uid + 2, 9, "", [str(cache)], chown)
    assert not changed


def test_reload_socket_works_in_a_directory_with_a_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    assert asked(deep, lambda _: "") == ""


def test_credentials_are_not_sent_to_another_process(tmp_path: Path) -> None:
    assert "another process" in asked(tmp_path, lambda _: "", pid=1)


def test_reload_request_requires_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload, "ROOT", os.getuid() + 1)
    assert asked(tmp_path, lambda _: "") != ""
    assert "only root may" in caplog.text


def test_waiting_client_gets_an_answer_when_the_service_stops(tmp_path: Path) -> None:
    async def end() -> str:
        taken = asyncio.Event()

        async def never(_: Request) -> None:
            taken.set()
            await asyncio.sleep(3600)

        async with Requests(tmp_path, never):
            asking = asyncio.create_task(asyncio.to_thread(reload_request.ask, str(tmp_path), os.getpid(), {}))
            await taken.wait()
        return await asyncio.wait_for(asking, 60)

    assert asyncio.run(end()) == "the service has stopped"


def test_client_stops_waiting_after_the_answer_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_request, "ANSWER_SEC", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.bind(str(tmp_path / reload_request.SOCKET))
        deaf.listen()
        assert "has not answered within 0.2 s" in reload_request.ask(str(tmp_path), os.getpid(), {})
    assert "cannot be reached" in reload_request.ask(str(tmp_path), os.getpid(), {})


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), "[]", "7", "no JSON"])
def test_listener_survives_bad_messages_and_descriptor_shortage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: OSError | str
) -> None:
    """A lack of file descriptors or an invalid message does not end the listener."""
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
        monkeypatch.setattr("json.dump", dump)
        async with Requests(tmp_path, answer):
            return [await asyncio.to_thread(reload_request.ask, str(tmp_path), os.getpid(), {}) for _ in range(2)]

    first, second = asyncio.run(asyncio.wait_for(ask(), 60))
    assert (bool(first), second) == (isinstance(fault, str), "")
    assert caplog.records


@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("not foreseen")])
def test_failed_reload_handler_is_reported_and_listener_survives(tmp_path: Path, fault: Exception) -> None:
    todo = [fault]

    def do(_: Request) -> str:
        if todo:
            raise todo.pop()
        return ""

    async def answer(request: Request) -> None:
        request.answer(do(request))

    async def ask() -> list[str]:
        async with Requests(tmp_path, answer):
            return [await asyncio.to_thread(reload_request.ask, str(tmp_path), os.getpid(), {}) for _ in range(2)]

    first, second = asyncio.run(asyncio.wait_for(ask(), 60))
    assert "the request failed" in first and second == ""


def test_files_named_in_settings_are_sent_with_the_request(root: Root) -> None:
    for name, content in (("keys", b"k\xff"), ("large", b"")):
        (root.path / name).write_bytes(content)
    os.truncate(root.path / "large", LARGEST_BYTES + 1)
    os.mkfifo(root.path / "pipe")
    root.instance("m", GOOD + f"API_KEY_FILE={root}/keys\nTLS_CERT_FILE={root}/large\nTLS_KEY_FILE={root}/pipe\n")
    assert reload_request.contents("m", str(root)) == {"api-key": "k\xff", "tls-cert": MISSING, "tls-key": MISSING}
    root.instance("m", GOOD + f"API_KEY_FILE={root}/keys\nPORT=none\n")
    assert reload_request.contents("m", str(root)) == {}, "refused settings name nothing"


def test_credential_read_opens_only_regular_files(root: Root) -> None:
    """tests/unit/test_regular_files.py has the other kinds of files."""
    assert credential_files.read("/dev/null") == MISSING.encode()
    (root.path / "keys").write_text("k")
    (root.path / "link").symlink_to("keys")
    assert credential_files.read(f"{root}/keys") == credential_files.read(f"{root}/link") == b"k"
    os.mkfifo(root.path / "pipe")
    assert credential_files.read(f"{root}/pipe") == MISSING.encode()


def test_changes_are_classified_by_restart_or_same_server() -> None:
    old = ServiceConfigSchema(name="m", model="/m", port=11500)
    for changed in (
        {"port": 11501},
        {"host": "::1"},
        {"hub_token_file": "/t"},
        {"gpu_devices": ("0",)},
        {"vllm_args": ("--nnodes", "2")},
    ):
        with pytest.raises(SettingsRefused, match="requires a restart"):
            reload.check(old, old.model_copy(update=changed))
    elsewhere = old.model_copy(update={"vllm_args": ("--nnodes", "2")})
    reload.check(elsewhere, old)
    keyed = old.model_copy(update={"api_key_file": "/k", "tls_cert_file": "/c", "tls_key_file": "/k"})
    reload.check(old, keyed)
    assert reload.same_server(old, keyed)
    assert not reload.same_server(old, old.model_copy(update={"max_model_len": 5}))


GB = 1 << 30


@pytest.mark.parametrize(
    ("weights", "limit", "more", "expected"),
    [
        (1, 8, {"kv_cache_gb": 1}, True),
        (1, 5, {"kv_cache_gb": 1}, False),
        (1, 64, {}, False),  # a cache that takes all remaining memory leaves none for a second cache
        (1, 64, {"kv_cache_gb": 1, "gpu_devices": "0"}, False),
        (0, 64, {"kv_cache_gb": 1}, True),
        (None, 64, {"kv_cache_gb": 1}, False),
    ],
)
def test_two_servers_run_together_only_if_memory_suffices(
    tmp_path: Path, weights: int | None, limit: float, more: dict[str, Any], expected: bool
) -> None:
    """`weights` in GiB, None for a model of the hub, whose size is unknown."""
    model = "organisation/model"
    if weights is not None:
        model = str(tmp_path)
        (tmp_path / "model.safetensors").touch()
        os.truncate(tmp_path / "model.safetensors", weights * GB)
        (tmp_path / "more.safetensors").symlink_to("nowhere")
    values = {"name": "m", "model": model, "port": 11500, "memory_limit_gb": limit, "allow_download": True}
    settings = ServiceConfigSchema.model_validate(values | more)
    assert (not reload.apart(settings, model, settings, model)) is expected
    for method in ("beside", "restart"):
        told = settings.model_copy(update={"reload_method": method})
        assert (not reload.apart(settings, model, told, model)) is (method == "beside")


def keyed(**more: object) -> ServiceConfigSchema:
    return ServiceConfigSchema(name="m", model="/m", port=11500, api_key_file="/a", **more)  # type: ignore[arg-type]


def request(keys: str, keys_only: bool = False, **more: str) -> tuple[Request, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Request(near, {"api-key": keys, **more}, keys_only), far


def taken_in(now: InEffect, keys: str, keys_only: bool = False) -> bool:
    one, far = request(keys, keys_only)
    with far:
        return asyncio.run(now.take_in(one))


def test_new_keys_apply_at_once_and_settings_with_the_next_server() -> None:
    settings = [keyed()]
    now = InEffect(keyed(), "/m", Credentials((digest("a"),)), lambda: (settings[0], "/m"))
    assert not taken_in(now, "b")
    assert now.credentials.key_digests == (digest("b"),)
    assert taken_in(now, "b"), "a reload without any change starts a new server"
    settings[0] = keyed(max_model_len=5)
    assert taken_in(now, "c")
    assert (now.credentials.key_digests, now.config.max_model_len) == ((digest("c"),), None)
    before = now.turn()
    assert (before[0].max_model_len, now.config.max_model_len) == (None, 5)
    now.back(*before)
    assert now.config.max_model_len is None


def test_key_revocation_applies_no_other_changed_setting() -> None:
    """A revocation applies none of the current settings, whether they are valid or not."""

    def broken() -> tuple[ServiceConfigSchema, str]:
        raise SettingsRefused([])

    tls = {"tls_cert_file": "/c", "tls_key_file": "/k"}
    now = InEffect(keyed(**tls), "/m", Credentials((digest("a"), digest("b")), made.CERTIFICATE, made.KEY), broken)
    assert not taken_in(now, "b", keys_only=True)
    assert now.credentials == Credentials((digest("b"),), made.CERTIFICATE, made.KEY)
    assert not taken_in(now, f"b\nsha256:{digest('c')} prometheus 2026-01-01 metrics\n", keys_only=True)
    assert (now.credentials.key_digests, now.credentials.metrics_digests) == ((digest("b"),), (digest("c"),))
    assert not taken_in(now, "b", keys_only=True)
    assert now.credentials.metrics_digests == ()
    with pytest.raises(SettingsRefused, match="is missing"):
        taken_in(now, MISSING, keys_only=True)
    assert now.credentials.key_digests == (digest("b"),), "a missing file admits no client"
    open_to_all = InEffect(ServiceConfigSchema(name="m", model="/m", port=11500), "/m", Credentials(), broken)
    with pytest.raises(SettingsRefused, match="run systemctl reload"):
        taken_in(open_to_all, "b", keys_only=True)


def test_reload_after_key_revocation_keeps_the_server() -> None:
    now = InEffect(keyed(), "/m", Credentials((digest("a"), digest("b"))), lambda: (keyed(), "/m"))
    taken_in(now, "b", keys_only=True)
    assert not taken_in(now, "b")
