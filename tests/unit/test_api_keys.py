import asyncio
from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.cli import keys
from hxp_enterprise_llm.services.core.service_manager.traffic import Traffic
from hxp_enterprise_llm.utils import api_keys, config
from hxp_enterprise_llm.utils.errors import CitadelError, NoSuchInstance, SettingsRefused

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


@pytest.fixture
def instance(root: Root) -> Root:
    root.instance("m", GOOD)
    (root.path / "etc/citadel-llm").mkdir()
    return root


def test_keys_are_made_listed_and_revoked_and_only_digests_are_kept(
    instance: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = instance.path / "etc/citadel-llm/m.keys"
    key, changed = keys.add("m", "alice", str(instance))
    assert changed
    # The settings name the path as the host sees it.
    assert config.load("m", str(instance))[0].api_key_file == str(file)
    other, changed = keys.add("m", "bob", str(instance))
    assert not changed and other != key
    assert [one.name for one in keys.listed("m", str(instance))] == ["alice", "bob"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert key not in file.read_text()
    assert api_keys.digest(key) in file.read_text()
    with pytest.raises(CitadelError, match="m has a key alice already"):
        keys.add("m", "alice", str(instance))
    assert keys.revoke("m", "alice", str(instance)) == 1
    with pytest.raises(CitadelError, match="m has no key alice; it has: bob"):
        keys.revoke("m", "alice", str(instance))
    with pytest.raises(NoSuchInstance):
        keys.add("none", "alice", str(instance))


def test_keys_written_by_hand_stay_as_they_are(instance: Root) -> None:
    file = instance.path / "keys"
    file.write_text("# ours\nby-hand-1\n\n")
    instance.instance("m", GOOD + f"API_KEY_FILE={file}\n")
    keys.add("m", "alice", str(instance))
    keys.revoke("m", "alice", str(instance))
    assert file.read_text() == "# ours\nby-hand-1\n\n"
    assert [one.digest for one in keys.listed("m", str(instance))] == [api_keys.digest("by-hand-1")]


@pytest.mark.parametrize("line", ["two words", "sha256:short", "sha256:" + "0" * 64 + " a", "é", "a\0b"])
def test_a_line_that_is_no_key_is_not_repeated(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 is no key") as refused:
        api_keys.read("good\n" + line)
    assert line not in str(refused.value)


def test_an_address_of_the_host_wants_a_key_or_a_word(root: Root) -> None:
    root.instance("m", GOOD + "HOST=192.0.2.1\n")
    with pytest.raises(SettingsRefused, match=r"open to other hosts, and no API_KEY_FILE.*key add m"):
        config.load("m", str(root))
    for more in ("ALLOW_UNAUTHENTICATED=yes\n", "API_KEY_FILE=/etc/k\n"):
        root.instance("m", GOOD + "HOST=192.0.2.1\n" + more)
        config.load("m", str(root))
    root.host("SERVER_IP=192.0.2.1\nALLOW_UNAUTHENTICATED=yes\n")
    root.instance("m", GOOD)
    assert config.load("m", str(root))[0].allow_unauthenticated


def answer(path: str, authorization: bytes | None, kind: str = "http") -> dict[str, Any]:
    """What a request is first answered, by an application that lets everybody in."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization)]
    scope = {"type": kind, "method": "GET", "path": path, "headers": headers, "app": type("App", (), {"state": Any})}
    scope["app"] = type("App", (), {"state": type("State", (), {"server": None})})
    asyncio.run(Traffic(application)(scope, None, send))
    return sent[0]


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Traffic, "key_digests", (api_keys.digest("first"), api_keys.digest("second")))


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/tokenize", "/invocations", "/docs", "/health/", "/Health"]
)
@pytest.mark.parametrize(
    "given", [None, b"", b"Bearer", b"Bearer ", b"Bearer third", b"Basic first", b"first", b"\xff"]
)
def test_every_path_asks_for_a_key(locked: None, path: str, given: bytes | None) -> None:
    assert answer(path, given)["status"] == 401


@pytest.mark.parametrize("given", [b"Bearer first", b"bearer second", b"Bearer  first "])
def test_each_key_opens(locked: None, given: bytes) -> None:
    assert answer("/metrics", given)["status"] == 200


def test_health_is_open_and_so_is_all_without_keys(locked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer("/health", None)["status"] == 200
    assert answer("/v1/realtime", None, "websocket") == {"type": "websocket.close", "code": 1008}
    monkeypatch.setattr(Traffic, "key_digests", ())
    assert answer("/metrics", None)["status"] == 200


def test_the_file_of_keys_is_bounded(instance: Root, tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1 << 30)
    instance.instance("m", GOOD + f"API_KEY_FILE={file}\n")
    with pytest.raises(CitadelError, match="larger than 1 MB"):
        keys.listed("m", str(instance))
