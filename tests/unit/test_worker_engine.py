"""What the engine's process gives up before it runs, and who may have the fork server start a process."""

import os
import pickle
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from hxp_enterprise_llm.system import isolation
from hxp_enterprise_llm.worker import engine
from hxp_enterprise_llm.worker.fork_requests import FromParent

VARIABLES = ("HOME", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")


class Confined:
    """The directories that the last engine may write to."""

    writable: tuple[Path, ...] = ()


@pytest.fixture
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Confined:
    """An engine on a CPU, whose domain is only noted."""
    found = Confined()

    def confine(hidden: str, writable: Iterable[Path]) -> bool:
        assert hidden == "/run/credentials"
        found.writable = tuple(writable)
        return True

    for place in ("cache", "temporary"):
        (tmp_path / place).mkdir()
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache/huggingface"))
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(isolation, "confine", confine)
    return found


def test_engine_writes_to_its_own_directories_only(confined: Confined, tmp_path: Path) -> None:
    engine.give_up_secrets()
    own, temporary = tmp_path / "cache/engine", tmp_path / "temporary/engine"
    assert confined.writable == (Path("/dev"), Path("/proc"), temporary, own)
    assert (own.stat().st_mode & 0o777, tempfile.gettempdir()) == (0o700, str(temporary))
    for name in VARIABLES:
        assert Path(os.environ[name]).is_relative_to(temporary if name == "TMPDIR" else own)


def test_engine_that_downloads_writes_to_the_cache_of_the_hub(
    confined: Confined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    engine.give_up_secrets()
    assert tmp_path / "cache/huggingface" in confined.writable


def test_engine_with_a_gpu_writes_to_the_cache(
    confined: Confined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_TARGET_DEVICE")
    engine.give_up_secrets()
    assert tmp_path / "cache" in confined.writable
    assert os.environ["HOME"] == str(tmp_path / "cache")


def test_forked_engine_closes_the_sockets_of_the_server(confined: Confined) -> None:
    order: list[object] = []
    with socket.socket() as withheld:
        engine.Engine(lambda *words: order.extend((*words, bool(confined.writable))), (withheld,))("x")
        assert withheld.fileno() == -1
    assert order == ["x", True], "confined first"


def test_spawned_engine_is_confined_before_its_arguments_are_read(
    confined: Confined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them imports vLLM."""
    text = pickle.dumps([engine.Engine(print, ()), Broken()])
    assert not confined.writable

    def refuse(_hidden: str, _writable: Iterable[Path]) -> bool:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(isolation, "confine", refuse)
    with pytest.raises(PermissionError):
        pickle.loads(text)  # noqa: S301  its own


class Broken:
    """Cannot be read."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """Read as a number that is none."""
        return int, ("x",)


def test_fork_server_accepts_connections_of_its_parent_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "socket")
    with FromParent(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            with pytest.raises(ConnectionAbortedError, match=str(os.getpid())):
                listener.accept()
            assert client.recv(1) == b""
        monkeypatch.setattr(os, "getppid", os.getpid)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            connection, _ = listener.accept()
            connection.close()
