"""A model whose files need a token of the hub, and which serves HTTPS: its engine gets neither secret.

The attacks (tests/attacks.py) run in the engine. As a control, each also runs in the API server, in an engine on a
kernel without Landlock, or outside the sandbox. SECURITY.md contains the table that this test prints.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certificates
import pytest

from .conftest import SUMMARY, TINY_MODEL, Host
from .running import FLAGS, FLAGS_OF_SERVER, Outcomes, add_modules, inside, judge, outside, remove_modules

NAME, PORT, HUB_PORT = "secret", 11585, 11991
UNIT = f"citadel-llm@{NAME}"
FAKE_HUB = Path(__file__).resolve().parent.parent / "fake_hub.py"
SECRETS = "/srv/secrets"
TOKEN = "hf_" + os.urandom(64).hex()[:61]
LINE = certificates.KEY.splitlines()[1]
DROP_IN = f"/run/systemd/system/{UNIT}.service.d/old.conf"
NO_LANDLOCK = "[Service]\nSystemCallFilter=~landlock_create_ruleset\n"
OPEN = {
    "signal 0 to it": "the engine can end its server, which the main process then replaces",
}
"""Attacks that are not refused, and why."""


class Secret:
    """The model."""

    def __init__(self, host: Host) -> None:
        self.host, self.machine = host, host.machine
        self.key = ""

    def start(self) -> None:
        machine = self.machine
        machine.copy_in(FAKE_HUB, "/root/fake_hub.py")
        for name, text in (("cert", certificates.CERTIFICATE), ("key", certificates.KEY), ("token", TOKEN)):
            machine.write(f"{SECRETS}/{name}", text)
            machine.run("chmod", "600", f"{SECRETS}/{name}")
        hub = ["python3", "/root/fake_hub.py", str(HUB_PORT), TINY_MODEL, "--token-file", f"{SECRETS}/token"]
        log = "--property=StandardOutput=truncate:/root/hub.log"
        machine.run("systemd-run", "--quiet", "--collect", "--unit=hub-of-secret", log, *hub)
        machine.run("sh", "-c", f"until ss -ltn | grep -q :{HUB_PORT}; do sleep 0.1; done", timeout=10)
        self.host.settings(
            NAME,
            MODEL="org/gated",
            PORT=PORT,
            KV_CACHE_GB=0.25,
            DRAIN_TIMEOUT_SEC=2,
            ALLOW_DOWNLOAD="yes",
            HUB_TOKEN_FILE=f"{SECRETS}/token",
            HF_ENDPOINT=f"http://127.0.0.1:{HUB_PORT}",
            TLS_CERT_FILE=f"{SECRETS}/cert",
            TLS_KEY_FILE=f"{SECRETS}/key",
            VLLM_ARGS=f"'{FLAGS} {FLAGS_OF_SERVER}'",
        )
        self.key = machine.output("citadel-llm", "key", "add", NAME)
        machine.run("systemctl", "start", UNIT)

    def inside(self, expression: str, *, server: bool = False) -> Any:
        return inside(self.machine, NAME, f"https://127.0.0.1:{PORT}", self.key, expression, server=server)

    def restart(self) -> None:
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "reset-failed", UNIT, check=False)
        self.machine.run("systemctl", "restart", UNIT)

    def attacks(self) -> str:
        """The attacks on the processes that run now, as an expression."""
        tree = self.machine.output("systemctl", "status", "--lines=0", UNIT)
        fork_server = re.search(r"(\d+) VLLM::ForkServer", tree)
        assert fork_server, tree
        server = int(self.host.server(NAME))
        main = int(self.machine.show(UNIT, "MainPID")["MainPID"])
        pids = {"API server": server, "main process": main, "fork server": int(fork_server[1])}
        first = self.machine.output("head", "-n1", f"/proc/{server}/maps").partition("-")[0]
        key, token = found_by(LINE), found_by(TOKEN)
        arguments = f"{NAME!r}, {PORT}, pids={pids!r}, address=0x{first}, key={key!r}, token={token!r}"
        return f"attacks.attempt(attacks.on_server({arguments}))"

    @contextlib.contextmanager
    def without_landlock(self) -> Iterator[None]:
        """Refuse Landlock's system call, as an older kernel does."""
        self.machine.write(DROP_IN, NO_LANDLOCK)
        try:
            self.restart()
            yield
        finally:
            self.machine.inside(DROP_IN).unlink()
            self.restart()


def found_by(secret: str) -> tuple[str, str]:
    """What finds a secret in memory without being in memory with it: its begin, and the digest of 64 characters."""
    assert len(secret) == 64
    return secret[:16], hashlib.sha256(secret.encode()).hexdigest()


@pytest.fixture(scope="module")
def secret(machine: Any) -> Iterator[Secret]:
    """The model, running; it and its files are removed afterwards."""
    secret = Secret(Host(machine))
    try:
        add_modules(machine)
        secret.start()
        yield secret
    finally:
        for instance in sorted(secret.host.made):
            secret.host.forget(instance)
        remove_modules(machine)
        machine.run("systemctl", "stop", "hub-of-secret", check=False)
        machine.run("rm", "-rf", SECRETS, f"/etc/citadel-llm/{NAME}.keys", f"/var/cache/citadel-llm/{NAME}")


def test_model_behind_a_token_is_fetched_and_served(secret: Secret) -> None:
    """The hub shows its files to clients with the token only."""
    asked = secret.machine.output("cat", "/root/hub.log")
    assert "GET config.json" in asked and "GET model.safetensors" in asked, asked
    assert secret.inside("'served'") == "served"
    title = secret.machine.output("systemctl", "status", "--lines=0", UNIT)
    assert "citadel-llm: download" not in title
    SUMMARY.append(secret.machine.show(UNIT, "StatusText")["StatusText"])


def test_engine_cannot_get_the_secrets_of_its_server(secret: Secret) -> None:
    controls: dict[str, Outcomes] = {}
    with secret.without_landlock():
        said = secret.host.journal(NAME)
        assert "could read the TLS private key and the hub token of this model: this kernel has Landlock 0" in said
        controls["without Landlock"] = secret.inside(secret.attacks())
    outcomes = secret.inside(secret.attacks())
    assert secret.inside("'serves'") == "serves"
    controls["API server"] = secret.inside(secret.attacks(), server=True)
    without = f"attacks.attempt(attacks.without_sandbox({LINE!r}, {TOKEN!r}))"
    controls["outside"] = outside(secret.machine, without)
    assert not judge("the engine to its own server", outcomes, controls, OPEN)


def test_engine_has_no_secret_after_a_reload_and_a_recovery(secret: Secret) -> None:
    """A reload starts a server beside the old one, and a recovery starts one in its place."""
    machine = secret.machine
    search = (
        f"attacks.attempt({{'key': lambda: attacks.find('self', *{found_by(LINE)!r}), "
        f"'token': lambda: attacks.find('self', *{found_by(TOKEN)!r}), "
        f"'clients': lambda: attacks.accept({PORT}), 'commands': attacks.hear_commands}})"
    )
    server = secret.host.server(NAME)
    machine.run("systemctl", "reload", UNIT)
    assert secret.host.server(NAME) != server, "nothing has changed, so a new server starts"
    assert {outcome for outcome, _ in secret.inside(search).values()} == {"refused"}
    server = secret.host.server(NAME)
    machine.run("kill", "-9", server)
    machine.run("sh", "-c", f"until curl -sk https://127.0.0.1:{PORT}/health; do sleep 0.2; done", timeout=60)
    assert secret.host.server(NAME) != server
    assert {outcome for outcome, _ in secret.inside(search).values()} == {"refused"}
