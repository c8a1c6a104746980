import fcntl
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hxp_enterprise_llm.cli import keys, scrape_job
from hxp_enterprise_llm.cli.commands import cli
from hxp_enterprise_llm.protocol import reload_request
from hxp_enterprise_llm.settings import api_keys, config
from hxp_enterprise_llm.settings.api_keys import ApiKey, KeyKind
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
    assert [one.name for one in keys.revoke("m", "alice", str(instance))] == ["bob"]
    with pytest.raises(CitadelError, match="m has no key named alice; it has: bob"):
        keys.revoke("m", "alice", str(instance))
    with pytest.raises(NoSuchInstance):
        keys.add("none", "alice", str(instance))


def read_by_version_1_1(text: str) -> list[str]:
    """The digests of the keys that version 1.1 of the package accepts, which knew no kinds of keys."""
    digests = []
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        made = re.fullmatch(r"sha256:([0-9a-f]{64})(?: ([A-Za-z0-9._-]{1,64}) ([0-9-]{10}))?", line)
        if made:
            digests.append(made[1])
        elif re.fullmatch(r"[!-~]+", line) and not line.startswith("sha256:"):
            digests.append(api_keys.digest(line))
        else:
            raise ValueError("not a key")
    return digests


def test_key_for_metrics_is_added_listed_and_revoked(instance: Root) -> None:
    root, file = str(instance), instance.path / "etc/citadel-llm/m.keys"
    keys.add("m", "alice", root)
    key, changed = keys.add("m", "prometheus", root, kind=KeyKind.METRICS)
    assert not changed
    found = keys.listed("m", root)
    assert [(one.name, one.kind) for one in found] == [("alice", KeyKind.API), ("prometheus", KeyKind.METRICS)]
    assert found[1].digest == api_keys.digest(key) and found[1].made == found[0].made
    with pytest.raises(CitadelError, match="already has a key named prometheus"):
        keys.add("m", "prometheus", root)
    with pytest.raises(ValueError, match="not a key"):
        read_by_version_1_1(file.read_text())
    # The API key can be revoked without the key for metrics, and the other way round.
    assert [one.name for one in keys.revoke("m", "alice", root)] == ["prometheus"]
    assert keys.revoke("m", "prometheus", root) == []


@pytest.mark.parametrize("text", ["", "# none\n", f"sha256:{'0' * 64} other 2026-01-01 metrics\n"])
def test_key_for_metrics_requires_an_api_key(instance: Root, text: str) -> None:
    """The key alone would make an open instance refuse all other requests."""
    with pytest.raises(CitadelError, match="first create an API key: citadel-llm key add m"):
        keys.add("m", "prometheus", str(instance), kind=KeyKind.METRICS)
    assert "API_KEY_FILE" not in Path(config.instance_file("m", str(instance))).read_text()
    file = instance.path / "keys"
    file.write_text(text)
    instance.instance("m", GOOD + f"API_KEY_FILE={file}\n")
    with pytest.raises(CitadelError, match="first create an API key"):
        keys.add("m", "prometheus", str(instance), kind=KeyKind.METRICS)
    assert file.read_text() == text


def test_files_of_version_1_1_stay_valid() -> None:
    text = f"# ours\nby-hand\nsha256:{'0' * 64}\n\n  sha256:{'1' * 64} alice 2026-01-01  \n#sha256:{'2' * 64}\n"
    found = api_keys.read(text)
    assert [one.digest for one in found] == read_by_version_1_1(text)
    assert {one.kind for one in found} == {KeyKind.API}


@pytest.mark.parametrize("more", ["Metrics", "metrics metrics", "metric", " metrics", "models=a", "metrics\0"])
def test_unknown_restriction_is_refused(more: str) -> None:
    """A key must never be valid for more than a later version, or the administrator, restricted it to."""
    with pytest.raises(ValueError, match="line 1 is not a key that this version"):
        api_keys.read(f"sha256:{'0' * 64} alice 2026-01-01 {more}\n")
    with pytest.raises(ValueError, match="line 1 is not a key that this version"):
        api_keys.read(f"sha256:{'0' * 64} metrics\n")


LINE = st.one_of(
    st.text(),
    st.text(st.characters(max_codepoint=127)),
    st.from_regex(
        r"(sha256:[0-9a-f]{64}( [\w.-]{1,64}( [0-9-]{10}( metrics)?)?)?|#.*|[!-~]+)[ \t\r\v\x85]?", fullmatch=True
    ),
)


@settings(deadline=None)
@given(lines=st.lists(LINE, max_size=6), ending=st.sampled_from(["\n", "\r\n", "\r", "\v", "\x85"]))
def test_any_text_is_read_as_version_1_1_reads_it_or_refused(lines: list[str], ending: str) -> None:
    """No text gives a key a wider use than in version 1.1, and no name that a terminal would interpret."""
    text = ending.join(lines)
    try:
        before: list[str] | None = read_by_version_1_1(text)
    except ValueError:
        before = None
    try:
        found = api_keys.read(text)
    except ValueError as refused:
        assert before is None and str(refused).isprintable()
        return
    for key in found:
        assert re.fullmatch("[0-9a-f]{64}", key.digest) and (key.name + key.made).isascii()
        assert (key.name + key.made).isprintable()
    if before is not None:
        assert [key.digest for key in found if key.kind is KeyKind.API] == before and len(found) == len(before)
    else:
        assert any(key.kind is KeyKind.METRICS for key in found)


@settings(deadline=None)
@given(name=st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True), kind=st.sampled_from(KeyKind))
def test_a_new_line_is_read_as_the_key_that_it_was_made_for(name: str, kind: KeyKind) -> None:
    key, line = api_keys.new(name, kind)
    (found,) = api_keys.read(line)
    assert found == ApiKey(name, found.made, api_keys.digest(key), kind)


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_of_a_key_file_give_keys_or_an_error(content: bytes) -> None:
    """The command and the main process decode a file differently, and must find the same keys."""
    found = []
    for errors in ("surrogateescape", "replace"):
        try:
            found.append(api_keys.read(content.decode("utf-8", errors)))
        except ValueError:
            found.append([])
    assert found[0] == found[1]


def test_commands_show_the_kind_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [ApiKey("", "", "0" * 64), ApiKey("prometheus", "2026-01-01", "1" * 64, KeyKind.METRICS)]
    monkeypatch.setattr(keys, "listed", lambda _: found)
    table = CliRunner().invoke(cli, ["key", "list", "m"]).stdout.splitlines()
    assert [line.split()[-2:] for line in table] == [["KIND", "CREATED"], ["api", "-"], ["metrics", "2026-01-01"]]
    assert json.loads(CliRunner().invoke(cli, ["key", "list", "m", "--json"]).stdout) == [
        {"name": "", "kind": "api", "made": ""},
        {"name": "prometheus", "kind": "metrics", "made": "2026-01-01"},
    ]


@pytest.mark.parametrize(
    ("words", "label", "kind"),
    [
        ((), "default", KeyKind.API),
        (("--metrics",), "metrics", KeyKind.METRICS),
        (("--metrics", "--name", "a"), "a", KeyKind.METRICS),
    ],
)
def test_key_add_prints_only_the_key_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], label: str, kind: KeyKind
) -> None:
    """So that its output can be piped into a file for Prometheus."""
    asked = []

    def add(name: str, called: str, *, kind: KeyKind) -> tuple[str, bool]:
        asked.append((name, called, kind))
        return "the-key", False

    monkeypatch.setattr(keys, "add", add)
    monkeypatch.setattr(scrape_job, "text", lambda name: f"job of {name}")
    done = CliRunner().invoke(cli, ["key", "add", "m", *words])
    assert (done.exit_code, done.stdout, asked) == (0, "the-key\n", [("m", label, kind)])
    assert ("job of m" in done.stderr) is (kind is KeyKind.METRICS)


def test_scrape_job_names_the_monitor_and_one_model(root: Root) -> None:
    root.host("SERVER_IP=::1\nHEALTH_PORT=8001\n")
    assert "url: http://[::1]:8001/health/targets/m\n" in scrape_job.text("m", str(root))
    root.host("")
    page = Path(__file__).resolve().parent.parent.parent / "docs/monitoring.md"
    assert f"```yaml\n{scrape_job.text('M', str(root))}\n```" in page.read_text(), "the page shows this job"


@pytest.mark.parametrize("more", ["", "MEMORY_LIMIT_GB=much\n"])
def test_scrape_job_of_a_model_with_https_names_its_certificate(root: Root, more: str) -> None:
    root.instance("m", f"MODEL=/srv/m\nPORT=11500\nTLS_CERT_FILE=/etc/ssl/m.pem\nTLS_KEY_FILE=/etc/ssl/m.key\n{more}")
    assert '    tls_config:\n      ca_file: "/etc/ssl/m.pem"\n' in scrape_job.text("m", str(root))
    root.host("TLS_CERT_FILE=/etc/ssl/all.pem\nTLS_KEY_FILE=/etc/ssl/all.key\n")
    assert 'ca_file: "/etc/ssl/all.pem"\n' in scrape_job.text("other", str(root))


@pytest.mark.parametrize(("left", "refuses"), [([], "all requests;"), ([KeyKind.METRICS], "all requests but those")])
def test_revoking_the_last_api_key_warns(monkeypatch: pytest.MonkeyPatch, left: list[KeyKind], refuses: str) -> None:
    monkeypatch.setattr(keys, "revoke", lambda *_: [ApiKey("a", "2026-01-01", "0" * 64, kind) for kind in left])
    monkeypatch.setattr(keys, "sharing", lambda _: [])
    done = CliRunner().invoke(cli, ["key", "revoke", "m", "alice"])
    assert done.exit_code == 0 and f"m has no API key left and refuses {refuses}" in done.stderr


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

    monkeypatch.setattr(keys, "revoke", lambda *_: [])
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
    assert keys.revoke("m", "alice", str(instance)) == []
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
