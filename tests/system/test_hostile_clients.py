"""Hostile connections to a model's API server, while a client with a key is served.

The connections are those of tests/hostile_clients.py.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import certificates as made
import pytest
from hostile_clients import CLIENT_TIMEOUT_SEC

from .conftest import SUMMARY, TINY_MODEL, Host

PORT = 11565
UNIT = "citadel-llm@hostile"
KEYS, CERTIFICATE, KEY = "/etc/citadel-llm/hostile.keys", "/etc/citadel-llm/hostile.pem", "/etc/citadel-llm/hostile.key"
TESTS = Path(__file__).resolve().parent.parent
PROGRAM, SECRET, FOUND = "/root/hostile_run.py", "/root/hostile.secret", "/root/hostile.json"
OVER_TLS = (
    "TLS", "oversized or malformed heads", "heads that do not end", "floods", "bodies without a key",
    "closed early", "pipelines", "readers that stop",
)  # fmt: skip
"""The other groups do not depend on the transport."""
FACTOR = 2
"""Bound of the median duration of a request with a key, relative to the median before the connections of a group."""
MEMORY_MB = 160
"""Bound of the server's growth while the connections of a group are made: 1,024 connections with a head of 64 KiB, or
with the buffers of TLS."""
MEMORY_WITH_KEY_MB = {"bodies with a key": 300, "bodies that are held": 1200}
"""The same for bodies with a key: two at a time grow to MAX_REQUEST_MB, or a hundred to four times that together, of
which the application and the allocator make some 900 MB."""
LONGEST_LINE = 2000
"""Bound of the length of a line in the journal (characters)."""


class Attacked:
    """An instance with a key and a small time for clients that stop reading."""

    def __init__(self, host: Host) -> None:
        self.host, self.machine = host, host.machine

    def start(self, **settings: object) -> None:
        for name in ("hostile_clients.py", "hostile_run.py"):
            self.machine.copy_in(TESTS / name, f"/root/{name}")
        self.host.settings(
            "hostile",
            MODEL=TINY_MODEL,
            PORT=PORT,
            KV_CACHE_GB=0.25,
            CLIENT_TIMEOUT_SEC=f"{CLIENT_TIMEOUT_SEC:g}",
            **settings,
        )
        self.machine.write(SECRET, self.machine.output("citadel-llm", "key", "add", "hostile"))
        self.machine.run("systemctl", "start", UNIT)
        self.logged = len(self.host.journal("hostile").splitlines())

    def attack(self, *more: str) -> list[dict[str, Any]]:
        """Make all connections; return the measurements of each group."""
        server, before = self.host.server("hostile"), self.machine.show(UNIT, "MainPID", "NRestarts")
        words = ["127.0.0.1", str(PORT), "--key-file", SECRET, "--model", "hostile", "--pid", server, "--json", FOUND]
        done = self.machine.run("/usr/bin/python3", PROGRAM, *words, *more, check=False, timeout=900)
        print(done.stdout, done.stderr)
        assert self.machine.show(UNIT, "MainPID", "NRestarts") == before
        assert self.host.server("hostile") == server, "the server was replaced"
        assert done.returncode == 0, done.stdout + done.stderr
        found: list[dict[str, Any]] = json.loads(self.machine.inside(FOUND).read_text())
        return found


@pytest.fixture
def attacked(host: Host) -> Iterator[Attacked]:
    yield Attacked(host)
    host.machine.run("rm", "-f", KEYS, CERTIFICATE, KEY, FOUND, SECRET, PROGRAM, "/root/hostile_clients.py")


def check(attacked: Attacked, what: str, names: Sequence[str] = (), *more: str) -> None:
    """Make the connections, print the table and compare it with the bounds."""
    groups = attacked.attack(*more, *(word for name in names for word in ("--group", name)))
    lines = [
        f"| {what} | number | outcomes | longest | most memory | clients with a key |",
        "|---|---|---|---|---|---|",
        *(group["line"] for group in groups),
    ]
    SUMMARY.extend(lines)
    assert sum(group["connections"] for group in groups) > 100
    # Something else on this host can slow a client down, but hardly twice.
    slow = [group["name"] for group in groups if group["factor"] > FACTOR]
    again = attacked.attack(*more, *(word for name in slow for word in ("--group", name))) if slow else []
    SUMMARY.extend(f"again: {group['line']}" for group in again)
    for group in (*(group for group in groups if group["name"] not in slow), *again):
        assert group["memory_mb"] <= MEMORY_WITH_KEY_MB.get(group["name"], MEMORY_MB), group
        assert group["factor"] <= FACTOR, group
        # The client with a key may have a connection that it had not before.
        assert group["descriptors"] <= 2, group
    said = attacked.host.journal("hostile").splitlines()[attacked.logged :]
    longest = max(map(len, said))
    SUMMARY.append(f"journal: {len(said)} lines, the longest has {longest} characters")
    assert longest <= LONGEST_LINE
    # The WebSockets with a key ask for other paths.
    unwanted = ('" 401', '"WebSocket /health', "Traceback")
    assert not [line for line in said if any(word in line for word in unwanted)]


def test_hostile_clients_harm_nobody(attacked: Attacked) -> None:
    attacked.start()
    check(attacked, "connections")


def test_hostile_clients_harm_nobody_over_tls(attacked: Attacked) -> None:
    machine = attacked.machine
    machine.write(CERTIFICATE, made.CERTIFICATE)
    machine.write(KEY, made.KEY)
    machine.run("chmod", "600", KEY)
    attacked.start(TLS_CERT_FILE=CERTIFICATE, TLS_KEY_FILE=KEY)
    check(attacked, "connections with TLS", OVER_TLS, "--tls")
    # Each renegotiation would cost the server a handshake.
    machine.run("apt-get", "-qy", "install", "openssl")
    ask = f"(sleep 1; echo R; sleep 3) | timeout 60 openssl s_client -tls1_2 -connect 127.0.0.1:{PORT} 2>&1"
    said = machine.run("sh", "-c", ask, check=False).stdout
    assert "RENEGOTIATING" in said and "no renegotiation" in said, said
