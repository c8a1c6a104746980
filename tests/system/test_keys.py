"""Keys of the API on a booted host: made by the command, asked for everywhere, kept nowhere."""

import json
import time
from collections.abc import Iterator

import pytest

from .conftest import TINY_MODEL, Host

PORT = 11590
PATHS = (
    "/v1/models",
    "/metrics",
    "/tokenize",
    "/invocations",
    "/version",
    "/ping",
    "/openapi.json",
    "/docs",
    "/nothing",
)


KEYS = "/etc/citadel-llm/locked.keys"


@pytest.fixture(autouse=True)
def keys(host: Host) -> Iterator[None]:
    """No test finds the keys of another, also not of one that failed."""
    yield
    host.machine.inside(KEYS).unlink(missing_ok=True)


def status(host: Host, path: str, key: str = "") -> str:
    words = ["-H", f"Authorization: Bearer {key}"] if key else []
    return host.machine.output(
        "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *words, f"http://127.0.0.1:{PORT}{path}"
    )


def test_keys_are_made_asked_for_and_revoked(host: Host) -> None:
    machine = host.machine
    host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25)
    alice = machine.output("citadel-llm", "key", "add", "locked", "--name", "alice")
    bob = machine.output("citadel-llm", "key", "add", "citadel-llm@locked", "--name", "bob")
    assert machine.output("stat", "-c", "%U %a", KEYS) == "root 600"
    names = [one["name"] for one in json.loads(machine.output("citadel-llm", "key", "list", "locked", "--json"))]
    assert names == ["alice", "bob"]
    machine.run("systemctl", "start", "citadel-llm@locked")
    assert {path: status(host, path) for path in PATHS} == dict.fromkeys(PATHS, "401")
    assert status(host, "/health") == "200"
    for key in (alice, bob):
        assert (status(host, "/v1/models", key), status(host, "/metrics", key)) == ("200", "200")
    assert status(host, "/v1/models", "wrong") == "401"
    # The monitor needs none, and tells none.
    end = time.monotonic() + 10
    while not json.loads(machine.output("curl", "-s", "http://127.0.0.1:8000/health/services/locked")).get("ready"):
        assert time.monotonic() < end, "the monitor does not say that it is ready"
        time.sleep(0.2)
    seen = machine.output("systemctl", "show", "citadel-llm@locked") + host.journal("locked")
    seen += machine.output("curl", "-s", "http://127.0.0.1:8000/health/services", "http://127.0.0.1:9090/metrics")
    everywhere = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ /run/citadel-llm/*/* 2>/dev/null | tr '\\0' ' '; true"
    seen += machine.output("sh", "-c", everywhere)
    assert alice not in seen and bob not in seen
    server = host.server("locked")
    machine.run("citadel-llm", "key", "revoke", "locked", "alice")
    carol = machine.output("citadel-llm", "key", "add", "locked", "--name", "carol")
    machine.run("citadel-llm", "reload", "locked")
    assert [status(host, "/v1/models", key) for key in (alice, bob, carol)] == ["401", "200", "200"]
    # Without a key left it is closed, not open.
    for name in ("bob", "carol"):
        machine.run("citadel-llm", "key", "revoke", "locked", name)
    machine.run("citadel-llm", "reload", "locked")
    assert [status(host, path, bob) for path in ("/v1/models", "/metrics", "/health")] == ["401", "401", "200"]
    assert host.server("locked") == server, "other keys take no other server"
    assert machine.run("systemctl", "restart", "citadel-llm@locked", check=False).returncode != 0
    assert "holds no key" in machine.show("citadel-llm@locked", "StatusText")["StatusText"]


def test_what_cannot_be_done_with_a_key_is_said(host: Host) -> None:
    host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25)
    for words, code, said in (
        (("add", "nobody"), 4, "there is no instance 'nobody'"),
        (("add", "locked", "--name", "a b"), 2, "write a word of letters"),
        (("revoke", "locked", "alice"), 1, "locked has no key alice"),
    ):
        done = host.machine.run("citadel-llm", "key", *words, check=False)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "citadel-llm", "key", "add", "locked"]
    done = host.machine.run(*as_nobody, check=False)
    assert (done.returncode, "run it with sudo" in done.stderr) == (1, True), done.stderr
    assert "API_KEY_FILE" not in host.machine.inside("/etc/default/citadel-llm-locked").read_text()


def test_a_refused_settings_file_is_not_changed(host: Host) -> None:
    host.settings("locked", MODEL=TINY_MODEL, PORT="none")
    done = host.machine.run("citadel-llm", "key", "add", "locked", check=False)
    assert (done.returncode, "PORT=none is refused" in done.stderr) == (78, True), done.stderr
    assert not host.machine.inside(KEYS).exists()
