"""API keys on a booted host: created by the command, required on every path, leaked nowhere."""

import json
import re
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator

import pytest
from waiting import until

from hxp_enterprise_llm.settings.api_keys import digest

from .conftest import SUMMARY, TINY_MODEL, Host

PORT = 11590
URL = f"http://127.0.0.1:{PORT}"
LEFT_OUT = ("/metrics", "/tokenize", "/invocations", "/ping", "/openapi.json", "/docs", "/redoc", "/nothing")
"""Paths that vLLM's own API description may omit or that vLLM leaves open."""
NEEDLES, HEADER, PLANTED = "/root/needles", "/root/header", "/var/tmp/planted"
LEAKS = f"""
places() {{ grep -aqF -f {NEEDLES} && echo "$1"; }}
cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | places processes
systemctl show --all 'citadel-llm*' | places properties
systemctl cat 'citadel-llm*' | places units
journalctl --sync
journalctl --output=export | places journal
for of in key\\ list show check status; do citadel-llm $of locked 2>&1; done | places commands
curl -s http://127.0.0.1:8000/health/services http://127.0.0.1:8000/ http://127.0.0.1:9090/metrics | places monitor
curl -s -H @{HEADER} {URL}/metrics {URL}/v1/models {URL}/openapi.json {URL}/version | places model
find /run /var /etc /tmp /dev/shm -type f -perm -004 -size -64M -exec grep -laF -f {NEEDLES} {{}} +
true
"""
"""Prints each place that contains one of the needles and that users other than root can read."""
ADD = """
import sys
from hxp_enterprise_llm.cli import keys
for number in range(20):
    keys.add("locked", f"{sys.argv[1]}{number}")
"""
TOGETHER = """
for who in a b; do /opt/citadel/env/bin/python -I -c "$1" $who & all="$all $!"; done
for one in $all; do wait $one || exit 1; done
"""
LATE = r"""
exec 3<>/dev/tcp/127.0.0.1/$0
echo connected
read -r key
printf 'GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n' "$key" >&3
head -n 1 <&3
"""
"""A client that connects, waits for a key on its input, and then sends a request with it."""
KEYS = "/etc/citadel-llm/locked.keys"
RECORDING = """
FILE = "/var/cache/citadel-llm/locked/recorded"

def record(what):
    with open(FILE, "a") as file:
        print(what, file=file)

class Recording:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            record(f"class {scope['type']} {scope['path']}")
        await self.app(scope, receive, send)

async def recording(request, call_next):
    record(f"function http {request.url.path}")
    return await call_next(request)
"""
UPGRADE = ["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13", "-H",
           "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]  # fmt: skip
"""Headers with which a client asks for a WebSocket."""


@pytest.fixture(autouse=True)
def keys(host: Host) -> Iterator[None]:
    """Delete all keys after each test, also after a failed test."""
    yield
    for file in (KEYS, NEEDLES, HEADER):
        host.machine.inside(file).unlink(missing_ok=True)


def statuses(host: Host, paths: Iterable[str], key: str = "", method: str = "GET") -> dict[str, str]:
    """The status code of each path for a request without a body."""
    words = ["-H", f"Authorization: Bearer {key}"] if key else []
    words += [word for path in paths for word in ("-o", "/dev/null", f"{URL}{path}")]
    asked = ["curl", "-s", "--max-time", "20", "-X", method, "-w", "%{url_effective} %{http_code}\\n", *words]
    lines = host.machine.output(*asked).splitlines()
    return {url.removeprefix(URL): code for url, code in map(str.split, lines)}


def status(host: Host, path: str, key: str = "") -> str:
    return statuses(host, [path], key)[path]


def leaks(host: Host, needles: list[str]) -> list[str]:
    """The places that contain one of the needles and that users other than root can read."""
    host.machine.write(NEEDLES, "".join(f"{needle}\n" for needle in needles))
    host.machine.run("chmod", "600", NEEDLES)
    return host.machine.output("sh", "-c", LEAKS).splitlines()


def start(host: Host, by_hand: str) -> tuple[str, str]:
    """Start `locked` with a handwritten key and two keys that the command creates; return the latter."""
    machine = host.machine
    machine.write(KEYS, f"# of the chat\n{by_hand}\n")
    machine.run("chmod", "600", KEYS)
    host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25, API_KEY_FILE=KEYS)
    alice = machine.output("citadel-llm", "key", "add", "locked", "--name", "alice")
    bob = machine.output("citadel-llm", "key", "add", "citadel-llm@locked", "--name", "bob")
    assert machine.output("stat", "-c", "%U %a", KEYS) == "root 600"
    names = [one["name"] for one in json.loads(machine.output("citadel-llm", "key", "list", "locked", "--json"))]
    assert names == ["", "alice", "bob"]
    machine.run("systemctl", "start", "citadel-llm@locked")
    return alice, bob


def test_keys_are_required_revoked_and_not_leaked(host: Host) -> None:
    machine = host.machine
    by_hand = f"by-hand-{secrets.token_hex(16)}"
    alice, bob = start(host, by_hand)
    given = (by_hand, alice, bob)
    # Paths that vLLM's API description lists, and paths that it omits.
    described = json.loads(machine.output("curl", "-s", "-H", f"Authorization: Bearer {alice}", f"{URL}/openapi.json"))
    paths = {re.sub(r"{\w+}", "1", path): methods for path, methods in described["paths"].items()}
    assert len(paths) > 15 and "/v1/chat/completions" in paths, sorted(paths)
    asked = sorted({*paths, *LEFT_OUT} - {"/health"})
    methods = sorted({"GET", *(method.upper() for one in paths.values() for method in one)})
    for method in methods:
        assert statuses(host, asked, method=method) == dict.fromkeys(asked, "401"), method
    SUMMARY.append(f"{len(asked)} paths, by {', '.join(methods)}: each asks for a key")
    assert "401" not in statuses(host, asked, alice).values()
    assert status(host, "/health") == "200"
    for key in given:
        assert list(statuses(host, ["/v1/models", "/metrics"], key).values()) == ["200", "200"]
    # Neither a digest nor a line of the key file is accepted as a key.
    for wrong in ("wrong", digest(by_hand), f"sha256:{digest(alice)}", "#"):
        assert status(host, "/v1/models", wrong) == "401"
    # A key for /metrics opens this path only, until it is revoked.
    scraper = machine.output("citadel-llm", "key", "add", "locked", "--metrics")
    machine.run("citadel-llm", "reload", "locked")
    for method in methods:
        answers = statuses(host, asked, scraper, method).items()
        assert {path for path, code in answers if code != "401"} == ({"/metrics"} if method == "GET" else set()), method
    SUMMARY.append(f"{len(asked)} paths, by {', '.join(methods)}: a key for /metrics opens GET /metrics only")
    machine.run("citadel-llm", "key", "revoke", "locked", "metrics")
    assert status(host, "/metrics", scraper) == "401"
    made = (*given, scraper)
    # The monitor needs no key and exposes none.
    health = "http://127.0.0.1:8000/health/services/locked"
    until(lambda: json.loads(machine.output("curl", "-s", health)).get("ready"), "the monitor reports it as ready")
    machine.write(HEADER, f"Authorization: Bearer {by_hand}\n")
    machine.run("chmod", "600", HEADER)
    assert leaks(host, [*made, *map(digest, made)]) == []
    server = host.server("locked")
    machine.run("citadel-llm", "key", "revoke", "locked", "alice")
    carol = machine.output("citadel-llm", "key", "add", "locked", "--name", "carol")
    machine.run("citadel-llm", "reload", "locked")
    assert [status(host, "/v1/models", key) for key in (*given, carol)] == ["200", "401", "200", "200"]
    assert leaks(host, [*given, carol, *map(digest, (*given, carol))]) == [], "a reload transfers keys too"
    assert host.server("locked") == server, "other keys take no other server"
    while_servers_change(host, bob, carol)
    # If no key is left, the instance refuses all requests.
    server = host.server("locked")
    machine.write(KEYS, machine.inside(KEYS).read_text().replace(by_hand, ""))
    machine.run("citadel-llm", "reload", "locked")
    assert [status(host, path, by_hand) for path in ("/v1/models", "/metrics", "/health")] == ["401", "401", "200"]
    assert host.server("locked") == server, "other keys take no other server"
    assert machine.run("systemctl", "restart", "citadel-llm@locked", check=False).returncode != 0
    assert "holds no key" in machine.show("citadel-llm@locked", "StatusText")["StatusText"]


def while_servers_change(host: Host, bob: str, carol: str) -> None:
    """A revoked key is refused while a new server loads, and while an old server drains."""
    machine, seen = host.machine, {}
    # A client that is connected to the old server and has sent no request yet.
    words = ["nsenter", f"--target={machine.leader}", "--net", "bash", "-c", LATE, str(PORT)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as silent:
        assert silent.stdin and silent.stdout
        assert silent.stdout.readline() == "connected\n"
        old = host.server("locked")
        host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25, API_KEY_FILE=KEYS, MAX_MODEL_LEN=1000)
        machine.run("systemctl", "reload", "--no-block", "citadel-llm@locked")
        until(lambda: " " in host.server("locked"), "two servers run")
        # Stop the new server before it has loaded.
        new = next(pid for pid in host.server("locked").split() if pid != old)
        machine.run("kill", "-STOP", new)
        try:
            seen["another loads"] = refused_after(host, "bob", bob)
            assert machine.show("citadel-llm@locked", "ActiveState")["ActiveState"] == "reloading"
        finally:
            machine.run("kill", "-CONT", new)
        assert status(host, "/v1/models", carol) == "200"
        until(lambda: machine.show("citadel-llm@locked", "ActiveState")["ActiveState"] == "active", "the reload ends")
        assert host.server("locked").split() == sorted([old, new], key=int), "the old one waits for its client"
        assert [status(host, "/v1/models", key) for key in (bob, carol)] == ["401", "200"]
        seen["one retires"] = refused_after(host, "carol", carol)
        assert old in host.server("locked")
        answer, _ = silent.communicate(f"{carol}\n", timeout=10)
        assert "401" in answer, answer
    until(lambda: host.server("locked") == new, "the old server is gone")
    SUMMARY.append(f"a revoked key is refused, from the command on: {seen}")


def refused_after(host: Host, name: str, key: str) -> str:
    """Revoke a key; return the time from the command until the key is refused."""
    begin = time.monotonic()
    host.machine.run("citadel-llm", "key", "revoke", "locked", name)
    assert status(host, "/v1/models", key) == "401"
    took = time.monotonic() - begin
    assert took < 2
    return f"{took:.2f} s"


def test_leak_search_finds_a_planted_string(host: Host) -> None:
    """The search of the test above finds a planted string in each of the places."""
    machine, canary = host.machine, f"canary-{secrets.token_hex(16)}"
    host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25, SERVED_MODEL_NAME=canary)
    unit = ["systemd-run", "--quiet", "--unit=citadel-llm-canary", f"--setenv=CANARY={canary}"]
    machine.run(*unit, f"--description={canary}", "sleep", "60")
    for file, content in ((PLANTED, canary), (HEADER, "Accept: */*")):
        machine.write(file, f"{content}\n")
    try:
        machine.run("systemctl", "start", "citadel-llm@locked")
        found = leaks(host, [canary])
    finally:
        machine.run("systemctl", "stop", "citadel-llm-canary")
        machine.run("rm", PLANTED)
    settings = "/etc/default/citadel-llm-locked"
    searched = {"processes", "properties", "units", "journal", "commands", "monitor", "model", PLANTED, settings}
    assert searched - {*found} == set()


def test_concurrent_processes_lose_no_key(host: Host) -> None:
    host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25)
    host.machine.run("sh", "-c", TOGETHER, "sh", ADD)
    listed = json.loads(host.machine.output("citadel-llm", "key", "list", "locked", "--json"))
    assert {one["name"] for one in listed} == {f"{who}{number}" for who in "ab" for number in range(20)}
    # The check warns if a compromised model could change the directory of the keys.
    host.machine.run("chown", "agent0", "/etc/citadel-llm")
    try:
        said = host.machine.run("citadel-llm", "check", "locked", check=False).stderr
    finally:
        host.machine.run("chown", "root", "/etc/citadel-llm")
    assert "agent0, and so a compromised model server, may change /etc/citadel-llm; move the file" in said, said
    assert "a compromised model" not in host.machine.run("citadel-llm", "check", "locked", check=False).stderr


def test_failed_key_commands_report_the_error(host: Host) -> None:
    host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25)
    for words, code, said in (
        (("add", "nobody"), 4, "there is no instance 'nobody'"),
        (("add", "locked", "--name", "a b"), 2, "write a word of letters"),
        (("revoke", "locked", "alice"), 1, "locked has no key named alice"),
    ):
        done = host.machine.run("citadel-llm", "key", *words, check=False)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "citadel-llm", "key", "add", "locked"]
    done = host.machine.run(*as_nobody, check=False)
    assert (done.returncode, "run it with sudo" in done.stderr) == (1, True), done.stderr
    assert "API_KEY_FILE" not in host.machine.inside("/etc/default/citadel-llm-locked").read_text()


def test_key_revocation_works_despite_refused_settings(host: Host) -> None:
    alice, bob = start(host, "by-hand")
    host.settings("locked", MODEL=TINY_MODEL, PORT="none", API_KEY_FILE=KEYS)
    host.machine.run("citadel-llm", "key", "revoke", "locked", "alice")
    assert [status(host, "/v1/models", key) for key in (alice, bob)] == ["401", "200"]


def test_a_refused_settings_file_is_not_changed(host: Host) -> None:
    host.settings("locked", MODEL=TINY_MODEL, PORT="none")
    done = host.machine.run("citadel-llm", "key", "add", "locked", check=False)
    assert (done.returncode, "PORT=none is refused" in done.stderr) == (78, True), done.stderr
    assert not host.machine.inside(KEYS).exists()


def test_middleware_of_the_settings_gets_no_request_without_a_key(host: Host) -> None:
    machine = host.machine
    module = "/opt/citadel/env/lib/python3.11/site-packages/recording.py"
    machine.write(module, RECORDING)
    try:
        flags = "'--middleware recording.Recording --middleware=recording.recording'"
        host.settings("locked", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25, API_KEY_FILE=KEYS, VLLM_ARGS=flags)
        key = machine.output("citadel-llm", "key", "add", "locked", "--name", "alice")
        machine.run("systemctl", "start", "citadel-llm@locked")
        assert set(statuses(host, ["/a", "/v1/models", "/metrics"]).values()) == {"401"}
        assert status(host, "/b", "wrong") == "401"
        asked = machine.output("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *UPGRADE, f"{URL}/v1/realtime")
        assert asked == "401"
        assert status(host, "/c", key) == "404"
    finally:
        machine.inside(module).unlink()
    recorded = machine.output("cat", "/var/cache/citadel-llm/locked/recorded").splitlines()
    # The main process's first request for a token, the client with a key, and /health, which the monitor may request.
    assert set(recorded) - {"class http /health", "function http /health"} == {
        f"{kind} http {path}" for kind in ("class", "function") for path in ("/v1/completions", "/c")
    }


def test_client_without_a_key_writes_nothing_into_the_journal(host: Host) -> None:
    machine = host.machine
    _, key = start(host, secrets.token_hex(16))
    long_path = "/long" + "x" * 40_000
    machine.run("journalctl", "--sync")
    cursor = machine.output("journalctl", "-u", "citadel-llm@locked", "-n", "1", "--show-cursor").split("cursor: ")[1]
    assert status(host, "/unknown") == "401"
    assert status(host, long_path, "wrong") == "401"
    machine.run("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{PORT}; printf 'no request\\r\\n\\r\\n' >&3; cat <&3")
    machine.output("curl", "-s", *UPGRADE, f"{URL}/v1/realtime")
    assert status(host, long_path, key) == "404"
    machine.run("journalctl", "--sync")
    after = ["journalctl", "-u", "citadel-llm@locked", "-o", "cat", f"--after-cursor={cursor.strip()}"]
    (line,) = [line for line in machine.output(*after).splitlines() if "HTTP/1.1" in line or "WebSocket" in line]
    assert "/longxxx" in line and "(40005 characters)" in line and len(line) < 400
    lines = machine.output(*after).splitlines()
    assert not [line for line in lines if "Invalid HTTP" in line or len(line) > 1000], lines
