import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from hxp_enterprise_llm.cli import keys
from hxp_enterprise_llm.cli.commands import cli
from hxp_enterprise_llm.protocol import reload_request
from hxp_enterprise_llm.settings import api_keys, config
from hxp_enterprise_llm.settings.errors import CitadelError, NoSuchInstance, NotPermitted, SettingsRefused

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


@pytest.fixture
def instance(root: Root) -> Root:
    root.instance("m", GOOD)
    (root.path / "etc/citadel-llm").mkdir()
    return root


def test_keys_are_added_listed_revoked_and_stored_as_digests(instance: Root, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(CitadelError, match="m already has a key named alice"):
        keys.add("m", "alice", str(instance))
    assert keys.revoke("m", "alice", str(instance)) == 1
    with pytest.raises(CitadelError, match="m has no key named alice; it has: bob"):
        keys.revoke("m", "alice", str(instance))
    with pytest.raises(NoSuchInstance):
        keys.add("none", "alice", str(instance))


def test_empty_name_does_not_revoke_handwritten_keys(instance: Root) -> None:
    file = instance.path / "etc/citadel-llm/m.keys"
    file.write_text("one-by-hand\nanother-by-hand\n")
    done = CliRunner().invoke(cli, ["key", "revoke", "m", ""])
    assert done.exit_code == 2 and "a word of letters" in done.output
    assert len(keys.listed("m", str(instance))) == 2


def test_revocation_reaches_all_instances_sharing_the_key_file(instance: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    file = instance.path / "etc/citadel-llm/m.keys"
    for name, port in (("m", 1), ("n", 2)):
        instance.instance(name, f"MODEL=/srv/m\nPORT=1150{port}\nAPI_KEY_FILE={file}\n")
    instance.instance("other", f"MODEL=/srv/m\nPORT=11503\nAPI_KEY_FILE={file}2\n")
    instance.instance("refused", f"MODEL=/srv/m\nPORT=none\nAPI_KEY_FILE={file}\n")
    instance.instance("unknown", f"MODEL=/srv/m\nPORT=11504\nAPI_KEY_FILE=${file}\n")
    (instance.path / "link").symlink_to(file)
    instance.instance("linked", f"MODEL=/srv/m\nPORT=11505\nAPI_KEY_FILE={instance.path}/link\n")
    instance.instance("default", "MODEL=/srv/m\nPORT=11506\n")
    assert keys.sharing("n", str(instance)) == ["n", "linked", "m", "refused", "unknown"], "unknown may name the file"

    told = []

    def hand_over(name: str) -> None:
        told.append(name)
        raise CitadelError(f"{name} has not taken them")

    monkeypatch.setattr(keys, "revoke", lambda *_: 1)
    monkeypatch.setattr(keys, "sharing", lambda _: ["n", "m"])
    monkeypatch.setattr(keys, "hand_over", hand_over)
    done = CliRunner().invoke(cli, ["key", "revoke", "n", "alice"])
    assert told == ["n", "m"]
    assert str(done.exception) == "n has not taken them\nm has not taken them"


def test_remaining_keys_are_sent_to_the_running_main_process(instance: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    (instance.path / "etc/citadel-llm/m.keys").write_text("by-hand\n")
    asked: list[tuple[object, ...]] = []
    refused, pid = "", 7

    class Manager:
        def __init__(self, root: str) -> None:
            pass

        def status(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(pid=pid)

    def ask(*words: object, sent: Callable[[], None]) -> str:
        asked.append(words)
        # Another reader of the keys has to wait, so that it cannot send older keys later.
        directory = os.open(instance.path / "etc/citadel-llm", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A main process that does not answer does not block other changes of keys.
        sent()
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(directory)
        return refused

    monkeypatch.setattr(keys, "ServiceManager", Manager)
    monkeypatch.setattr(reload_request, "ask", ask)
    instance.host("VLLM_PID_PATH=/run/elsewhere\nVLLM_USER=$x\n")
    keys.hand_over("m", str(instance))
    assert asked == [("/run/elsewhere/m", 7, {"api-key": "by-hand\n"}, b"keys")]
    refused = "it does not listen"
    with pytest.raises(CitadelError, match=r"still accepts the previous keys, not those in .*: it does not listen"):
        keys.hand_over("m", str(instance))
    pid = 0
    keys.hand_over("m", str(instance))
    assert len(asked) == 2, "a stopped instance is not asked"


@pytest.mark.parametrize("wrong", ["PORT=none\n", "KV_CACHE_GB=8\n", "A B\n", "# x\\\n", "MODEL=$x\n"])
def test_key_can_be_revoked_despite_refused_settings(instance: Root, wrong: str) -> None:
    keys.add("m", "alice", str(instance))
    file = Path(config.instance_file("m", str(instance)))
    file.write_text(file.read_text() + wrong)
    instance.host("VLLM_USER=$x\n")
    assert [key.name for key in keys.listed("m", str(instance))] == ["alice"]
    assert keys.revoke("m", "alice", str(instance)) == 0
    with pytest.raises(SettingsRefused):
        keys.add("m", "bob", str(instance))


@pytest.mark.parametrize("line", ["API_KEY_FILE=$x", "API_KEY_FILE=x", "API_KEY_FILE = /x", "\0", "# é", "x\r"])
@pytest.mark.parametrize("before", ["", "API_KEY_FILE=/srv/keys-of-before\n"])
def test_refused_api_key_file_setting_is_not_guessed(instance: Root, line: str, before: str) -> None:
    text = f"{GOOD}{before}{line}\n"
    instance.instance("m", "").write_bytes(text.encode("latin-1"))
    if line == "\0" and before:
        assert keys.listed("m", str(instance)) == [], "a line that means no key"
        return
    with pytest.raises(SettingsRefused, match=f"citadel-llm-m:{text.count(chr(10))}"):
        keys.revoke("m", "alice", str(instance))


def test_first_key_makes_settings_open_to_other_hosts_valid(instance: Root) -> None:
    file = instance.instance("m", GOOD + "HOST=192.0.2.7\n")
    with pytest.raises(SettingsRefused, match="citadel-llm key add m"):
        config.load("m", str(instance))
    keys.add("m", "alice", str(instance))
    assert config.load("m", str(instance))[0].api_key_file
    file.write_text("HOST=192.0.2.7\nPORT=none\n")
    with pytest.raises(SettingsRefused) as caught:
        keys.add("m", "bob", str(instance))
    assert {finding.file for finding in caught.value.findings} == {str(file)}
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]


def test_handwritten_keys_are_not_changed(instance: Root) -> None:
    file = instance.path / "keys"
    file.write_text("# ours\nby-hand-1\n\n")
    instance.instance("m", GOOD + f"API_KEY_FILE={file}\n")
    keys.add("m", "alice", str(instance))
    keys.revoke("m", "alice", str(instance))
    assert file.read_text() == "# ours\nby-hand-1\n\n"
    assert [one.digest for one in keys.listed("m", str(instance))] == [api_keys.digest("by-hand-1")]


def test_concurrent_key_add_loses_no_key(instance: Root) -> None:
    """No key and no API_KEY_FILE line is lost; tests/system repeats this with processes."""

    def add(who: str) -> None:
        for number in range(20):
            keys.add("m", f"{who}{number}", str(instance))

    with ThreadPoolExecutor() as pool:
        list(pool.map(add, "ab"))
    names = {one.name for one in keys.listed("m", str(instance))}
    assert names == {f"{who}{number}" for who in "ab" for number in range(20)}
    assert Path(config.instance_file("m", str(instance))).read_text().count("API_KEY_FILE=") == 1


def test_key_add_without_permission_or_directory_suggests_a_command(
    instance: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(NotPermitted, match="run it with sudo"):
        keys.add("m", "alice", str(instance))
    monkeypatch.undo()
    (instance.path / "etc/citadel-llm").rmdir()
    with pytest.raises(CitadelError, match="systemd-tmpfiles --create"):
        keys.add("m", "alice", str(instance))


def test_key_file_is_synced_before_it_replaces_the_old_file(instance: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    file = instance.path / "keys"
    file.write_text("by-hand\n")
    file.chmod(0o640)
    instance.instance("m", GOOD + f"API_KEY_FILE={file}\n")
    done: list[str] = []
    fsync, rename, fchown = os.fsync, Path.rename, os.fchown

    def note(descriptor: int) -> None:
        of_a_file = S_ISREG(os.fstat(descriptor).st_mode)
        done.append(f"fsync {os.fstat(descriptor).st_size} bytes" if of_a_file else "fsync directory")
        fsync(descriptor)

    def own(descriptor: int, user: int, group: int) -> None:
        done.append(f"fchown {(user, group)}")
        fchown(descriptor, user, group)

    def move(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr("os.fsync", note)
    monkeypatch.setattr("os.fchown", own)
    monkeypatch.setattr(Path, "rename", move)
    keys.add("m", "alice", str(instance))
    before = file.stat()
    assert done == [
        f"fchown {(before.st_uid, before.st_gid)}",
        f"fsync {before.st_size} bytes",
        "rename",
        "fsync directory",
    ]
    assert before.st_mode & 0o777 == 0o640

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CitadelError, match="No space left"):
        keys.revoke("m", "alice", str(instance))
    assert [one.name for one in keys.listed("m", str(instance))] == ["", "alice"]
    assert not list(instance.path.glob("*.new")), "no draft is left"


def test_key_file_link_is_not_replaced_and_fifo_does_not_block(instance: Root) -> None:
    (instance.path / "real").write_text("k\n")
    (instance.path / "link").symlink_to("real")
    os.mkfifo(instance.path / "pipe")
    instance.instance("m", GOOD + f"API_KEY_FILE={instance}/link\n")
    assert len(keys.listed("m", str(instance))) == 1
    with pytest.raises(CitadelError, match="is a symbolic link"):
        keys.add("m", "alice", str(instance))
    instance.instance("m", GOOD + f"API_KEY_FILE={instance}/pipe\n")
    with pytest.raises(CitadelError, match="pipe: is not a regular file"):
        keys.listed("m", str(instance))


@pytest.mark.parametrize("line", ["two words", "sha256:short", "sha256:" + "0" * 64 + " a", "é", "a\0b"])
def test_invalid_key_line_is_not_printed(line: str) -> None:
    with pytest.raises(ValueError, match="line 2 is not a key") as refused:
        api_keys.read("good\n" + line)
    assert line not in str(refused.value)


def test_open_host_requires_keys_or_allow_unauthenticated(root: Root) -> None:
    root.instance("m", GOOD + "HOST=192.0.2.1\n")
    with pytest.raises(SettingsRefused, match=r"open to other hosts, and no API_KEY_FILE.*key add m"):
        config.load("m", str(root))
    for more in ("ALLOW_UNAUTHENTICATED=yes\n", "API_KEY_FILE=/etc/k\n"):
        root.instance("m", GOOD + "HOST=192.0.2.1\n" + more)
        config.load("m", str(root))
    root.host("SERVER_IP=192.0.2.1\nALLOW_UNAUTHENTICATED=yes\n")
    root.instance("m", GOOD)
    assert config.load("m", str(root))[0].allow_unauthenticated


def test_key_file_size_is_limited(instance: Root, tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1 << 30)
    instance.instance("m", GOOD + f"API_KEY_FILE={file}\n")
    with pytest.raises(CitadelError, match="larger than 1 MB"):
        keys.listed("m", str(instance))
