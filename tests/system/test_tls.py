"""HTTPS on a booted host: a key that only root can read, and a renewal that no client notices."""

import json
from collections.abc import Iterator
from pathlib import Path

import certificates as made
import pytest
from waiting import until

from .conftest import TINY_MODEL, Host

PORT = 11596
UNIT = "citadel-llm@secure"
CERTIFICATE, KEY = "/srv/keys/secure.pem", "/srv/keys/secure.key"
END = "2100-01-01T00:00:00Z"
MOUNT = """
[Mount]
What=/var/keys
Where=/srv/keys
Type=none
Options=bind
"""
SHOWN = f"import ssl; print(ssl.get_server_certificate(('127.0.0.1', {PORT})), end='')"
CLIENT = Path(__file__).resolve().parent.parent / "steady_client.py"


class Secure:
    """An instance whose certificate and key are on a file system that only its own start mounts."""

    def __init__(self, host: Host) -> None:
        self.host, self.machine = host, host.machine
        self.machine.write("/etc/systemd/system/srv-keys.mount", MOUNT)
        self.machine.run("mkdir", "-p", "/srv/keys")
        self.give(made.CERTIFICATE, made.KEY, "/var/keys")
        self.settings = {
            "MODEL": TINY_MODEL,
            "PORT": PORT,
            "KV_CACHE_GB": 0.25,
            # On a busy host the client's requests are slow.
            "DRAIN_TIMEOUT_SEC": 280,
            "TLS_CERT_FILE": CERTIFICATE,
            "TLS_KEY_FILE": KEY,
        }
        host.settings("secure", **self.settings)

    def give(self, certificate: str, key: str, directory: str = "/srv/keys") -> None:
        """Write both files as their administrator would."""
        for name, text, mode in (("secure.pem", certificate, "644"), ("secure.key", key, "600")):
            self.machine.write(f"{directory}/{name}", text)
            self.machine.run("chmod", mode, f"{directory}/{name}")

    def shown(self) -> str:
        """The certificate that the server presents."""
        return self.machine.output("/usr/bin/python3", "-c", SHOWN) + "\n"

    def refused(self, verb: str) -> str:
        """The status text of a start or a reload that must fail."""
        assert self.machine.run("systemctl", verb, UNIT, check=False).returncode == 1
        return self.machine.show(UNIT, "StatusText")["StatusText"]


@pytest.fixture
def secure(host: Host) -> Iterator[Secure]:
    secure = Secure(host)
    yield secure
    host.machine.run("systemctl", "stop", UNIT, "srv-keys.mount", check=False)
    host.machine.run("rm", "-rf", "/etc/systemd/system/srv-keys.mount", "/var/keys")


def test_https_serves_through_certificate_renewal_under_load(secure: Secure) -> None:
    machine = secure.machine
    assert not machine.inside(KEY).exists()
    machine.run("systemctl", "start", UNIT)
    address = f"https://127.0.0.1:{PORT}"
    assert address in machine.show(UNIT, "StatusText")["StatusText"]
    assert machine.output("citadel-llm", "check", "secure") == "secure: good"
    assert f"Address: {address}" in machine.output("citadel-llm", "status", "secure")
    assert machine.output("curl", "-s", "--cacert", CERTIFICATE, "-w", "%{http_code}", f"{address}/health") == "200"
    assert machine.run("curl", "-s", f"http://127.0.0.1:{PORT}/health", check=False).returncode != 0
    watched(secure)
    # The key is only in its file, which the service's own user cannot read.
    nowhere(secure)

    machine.copy_in(CLIENT, "/root/steady_client.py")
    machine.write("/root/trusted.pem", made.CERTIFICATE + made.RSA_CERTIFICATE)
    machine.run("rm", "-f", "/root/enough", "/root/asked")
    client = f"/opt/citadel/env/bin/python -I /root/steady_client.py {address}/v1/completions secure /root/enough"
    machine.run(
        "systemd-run", "--quiet", "--unit=steady", "--property=StandardOutput=truncate:/root/asked",
        "--setenv=SSL_CERT_FILE=/root/trusted.pem", *client.split(),
    )  # fmt: skip
    machine.run("sleep", "2")
    server = secure.host.server("secure")
    for certificate, key in ((made.RSA_CERTIFICATE, made.RSA_KEY), (made.CERTIFICATE, made.KEY)):
        assert secure.shown() != certificate
        secure.give(certificate, key)
        machine.run("citadel-llm", "reload", "secure")
        assert secure.shown() == certificate
        assert secure.host.server("secure") == server, "a new certificate needs no new server"
    # If a setting has changed too, a new server starts.
    secure.give(made.RSA_CERTIFICATE, made.RSA_KEY)
    secure.host.settings("secure", **secure.settings, MAX_MODEL_LEN=1000)
    machine.run("systemctl", "reload", UNIT)
    assert secure.host.server("secure") != server
    assert secure.shown() == made.RSA_CERTIFICATE
    machine.run("touch", "/root/enough")
    until(lambda: machine.inside("/root/asked").stat().st_size > 0, "the file exists")
    asked = json.loads(machine.output("cat", "/root/asked"))
    print(f"3 reloads with another certificate: {asked['counts']} answered, {len(asked['failures'])} failed")
    assert not asked["failures"], asked["failures"][:5]
    assert min(asked["counts"].values()) > 10

    # An unusable certificate or key is refused, and the old one stays in use.
    for certificate, key, said in (
        (made.CERTIFICATE, made.RSA_KEY, "the key of another certificate"),
        (made.EXPIRED, made.KEY, "certificate has expired"),
    ):
        secure.give(certificate, key)
        assert said in secure.refused("reload")
        assert secure.shown() == made.RSA_CERTIFICATE
        done = machine.run("citadel-llm", "check", "secure", check=False)
        assert (done.returncode, said in done.stderr) == (78, True), done.stderr
    for certificate, key, said in (
        (made.EXPIRED, made.KEY, "certificate has expired"),
        (made.CERTIFICATE, made.ENCRYPTED_KEY, "is encrypted"),
        (made.CERTIFICATE, "", "TLS_KEY_FILE=/srv/keys/secure.key is missing"),
    ):
        secure.give(certificate, key)
        if not key:
            machine.inside(KEY).unlink()
        assert said in secure.refused("restart")
        assert machine.show(UNIT, "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "78", "NRestarts": "0"}


def watched(secure: Secure) -> None:
    """The monitor probes by HTTPS, gives Prometheus this scheme, and knows when the certificate expires."""
    machine = secure.machine
    health = "http://127.0.0.1:8000/health"
    until(
        lambda: json.loads(machine.output("curl", "-s", f"{health}/services/secure")).get("ready"),
        "the monitor reports the instance as ready",
    )
    assert json.loads(machine.output("curl", "-s", f"{health}/services/secure"))["tls"]
    assert json.loads(machine.output("curl", "-s", f"{health}/services/secure"))["certificate_expires"] == END
    expiry = 'citadel_llm_service_certificate_expiry_seconds{service="secure"} 4.1024448e+09'
    assert expiry in machine.output("curl", "-s", "http://127.0.0.1:9090/metrics")
    targets = json.loads(machine.output("curl", "-s", f"{health}/targets"))
    labels = {"service": "secure", "__scheme__": "https"}
    assert {"targets": [f"127.0.0.1:{PORT}"], "labels": labels} in targets


def nowhere(secure: Secure) -> None:
    """The private key is only in the service's credentials, and nowhere that others can read."""
    machine = secure.machine
    line = made.KEY.splitlines()[1][:40]
    seen = machine.output("systemctl", "show", UNIT) + machine.output("systemctl", "cat", UNIT)
    seen += secure.host.journal("secure")
    seen += machine.output("curl", "-s", "http://127.0.0.1:8000/health/services", "http://127.0.0.1:9090/metrics")
    everywhere = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '; true"
    assert line not in seen + machine.output("sh", "-c", everywhere)
    places = ["/run", "/tmp", "/var/tmp", "/var/cache/citadel-llm", "/var/lib/citadel-llm", "/etc", "/dev/shm"]
    found = machine.run("grep", "-rlsF", "--devices=skip", line, *places, check=False).stdout.split()
    assert found == [f"/run/credentials/{UNIT}.service/tls-key"], found
    assert machine.output("stat", "-c", "%U %a", Path(found[0]).parent, found[0]).splitlines() == [
        "agent0 500",
        "agent0 400",
    ]
    as_service = ["setpriv", "--reuid=agent0", "--regid=agent0", "--init-groups", "cat", KEY]
    assert "Permission denied" in machine.run(*as_service, check=False).stderr
