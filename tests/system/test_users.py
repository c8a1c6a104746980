"""VLLM_USER=dynamic: each instance as a user of its own, in all that an instance does and when the mode changes."""

import json
from collections.abc import Iterator

import pytest
from machine import Machine
from versions import NEW_WORDS, Versions
from waiting import until

from hxp_enterprise_llm.system.isolation import DYNAMIC_UIDS

from .conftest import SUMMARY, TINY_MODEL, Host

NAME, OTHER = "own", "Other.Model"
PORTS = {NAME: 11571, OTHER: 11572}
HOST_FILE, POLICY = "/etc/default/citadel-llm", "/usr/sbin/policy-rc.d"
CACHE, MARK = f"/var/cache/citadel-llm/{NAME}", "mark"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
EXPOSURE = 1.1


@pytest.fixture
def modes(host: Host) -> Iterator[Host]:
    """A host whose VLLM_USER a test may change; the models log to files too."""
    setting(host.machine, "LOG_TO_FILE", "yes")
    host.machine.run("systemctl", "start", "citadel-llm-monitor")
    yield host
    for instance in sorted(host.made):
        host.forget(instance)
    setting(host.machine, "VLLM_USER", "agent0")
    setting(host.machine, "LOG_TO_FILE", "no")
    host.machine.inside(f"/etc/citadel-llm/{NAME}.keys").unlink(missing_ok=True)


def setting(machine: Machine, key: str, value: str) -> None:
    """Change a line of the host's settings file; systemd reads it."""
    machine.run("sed", "-i", f"s/^{key}=.*/{key}={value}/", HOST_FILE)
    machine.run("systemctl", "daemon-reload")


def start(machine: Machine, verb: str) -> None:
    """Start or restart the instance; systemd limits the number of starts in two minutes."""
    machine.run("systemctl", "reset-failed", f"citadel-llm@{NAME}", check=False)
    machine.run("systemctl", verb, f"citadel-llm@{NAME}")


def user(machine: Machine, name: str) -> int:
    """The UID of an instance's main process, whose group is agent0 in both modes."""
    pid = machine.show(f"citadel-llm@{name}", "MainPID")["MainPID"]
    uid, group = machine.output("stat", "-c", "%u %G", f"/proc/{pid}").split()
    assert group == "agent0"
    return int(uid)


def status(host: Host, key: str) -> str:
    """The HTTP status of a completion."""
    body = json.dumps({"prompt": "License", "max_tokens": 2})
    ask = ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json", "-d", body]
    url = f"http://127.0.0.1:{PORTS[NAME]}/v1/completions"
    return host.machine.output("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *ask, url)


def phase(host: Host) -> str:
    """The phase in state.json, as every user of the host can read it."""
    text = host.machine.output(*AS_NOBODY, "cat", f"/run/citadel-llm/{NAME}/state.json")
    return str(json.loads(text)["phase"])


def health(host: Host) -> dict[str, object]:
    text = host.machine.output("curl", "-s", f"http://127.0.0.1:8000/health/services/{NAME}")
    found: dict[str, object] = json.loads(text)
    return found


def works(host: Host, key: str) -> None:
    """All that an instance does: answer, take keys, reload, recover, report its state, log, keep its cache."""
    machine = host.machine
    assert status(host, key) == "200"
    second = machine.output("citadel-llm", "key", "add", NAME, "--name", "second")
    machine.run("systemctl", "reload", f"citadel-llm@{NAME}")
    assert status(host, second) == "200"
    machine.run("citadel-llm", "key", "revoke", NAME, "second")
    assert (status(host, second), status(host, key)) == ("401", "200")
    before = host.server(NAME)
    machine.run("kill", "-KILL", *before.split())
    until(lambda: host.server(NAME) not in ("", before), "the server is replaced")
    until(lambda: phase(host) == "ready" and status(host, key) == "200", "the new server answers")
    pid = machine.show(f"citadel-llm@{NAME}", "MainPID")["MainPID"]
    until(lambda: health(host)["ready"] and str(health(host)["pid"]) == pid, "the monitor sees it")
    assert "ready" in machine.output(*AS_NOBODY, "citadel-llm", "status", NAME).lower()
    log = f"/var/log/citadel-llm/{NAME}.log"
    until(
        lambda: f"Started citadel-llm@{NAME}.service" in machine.output("tail", "-n", "200", log), "it logs to a file"
    )
    owner, mode = machine.output("stat", "-c", "%u %a", f"{CACHE}/{MARK}").split()
    assert (int(owner), mode) == (user(machine, NAME), "600")


def test_instance_works_in_both_modes_and_after_each_change(modes: Host) -> None:
    machine = modes.machine
    modes.settings(NAME, MODEL=TINY_MODEL, PORT=PORTS[NAME], KV_CACHE_GB=0.25, DRAIN_TIMEOUT_SEC=2)
    key = machine.output("citadel-llm", "key", "add", NAME)
    users: list[int] = []
    for mode in ("dynamic", "agent0", "dynamic"):
        running = machine.show(f"citadel-llm@{NAME}", "ActiveState")["ActiveState"] == "active"
        setting(machine, "VLLM_USER", mode)
        if running:
            # It still runs as before, and works: only a restart changes the user.
            machine.run("systemctl", "reload", f"citadel-llm@{NAME}")
            assert user(machine, NAME) == users[-1]
            works(modes, key)
        machine.run("citadel-llm", "check", NAME)
        start(machine, "restart")
        users.append(user(machine, NAME))
        assert (users[-1] in DYNAMIC_UIDS) == (mode == "dynamic"), users
        if not running:
            machine.run("sh", "-c", f"cd {CACHE}; touch {MARK}; chmod 600 {MARK}; chown --reference=. {MARK}")
        works(modes, key)
        machine.run("systemctl", "stop", f"citadel-llm@{NAME}")
        assert phase(modes) == "stopped"
        start(machine, "start")
        assert user(machine, NAME) == users[-1] and status(modes, key) == "200"
    # The reason of a refused start stays readable.
    modes.settings(NAME, MODEL="/missing", PORT=PORTS[NAME])
    assert machine.run("systemctl", "restart", f"citadel-llm@{NAME}", check=False).returncode
    assert phase(modes) == "failed"
    assert "/missing" in machine.run(*AS_NOBODY, "citadel-llm", "status", NAME, check=False).stdout
    until(lambda: "/missing" in str(health(modes)["reason"]), "the monitor has the reason")


def test_each_instance_has_another_user_and_the_exposure_stays(modes: Host) -> None:
    machine = modes.machine
    setting(machine, "VLLM_USER", "dynamic")
    # Another place for the run-time directories.
    setting(machine, "VLLM_PID_PATH", r"\/run\/elsewhere")
    try:
        for name, port in PORTS.items():
            modes.settings(name, MODEL=TINY_MODEL, PORT=port, KV_CACHE_GB=0.25)
        machine.run("systemctl", "start", *(f"citadel-llm@{name}" for name in PORTS))
        assert len({user(machine, name) for name in PORTS}) == len(PORTS)
        for name in PORTS:
            pid = machine.show(f"citadel-llm@{name}", "MainPID")["MainPID"]
            for place in ("/run/elsewhere", "/var/cache/private/citadel-llm"):
                assert machine.output("ls", "-A", f"/proc/{pid}/root{place}") == name
            assert machine.output("cat", f"/run/elsewhere/{name}/pid") == pid
        assert "each model runs as a user of its own" in machine.run("citadel-llm", "doctor", check=False).stdout
        last = machine.output("systemd-analyze", "security", "--no-pager", f"citadel-llm@{NAME}").splitlines()[-1]
        SUMMARY.append(f"VLLM_USER=dynamic: {last.removeprefix('→ ')}")
        assert float(last.split(": ")[1].split()[0]) <= EXPOSURE, last
    finally:
        setting(machine, "VLLM_PID_PATH", r"\/run\/citadel-llm")
    setting(machine, "VLLM_USER", "agent0")
    machine.run("systemctl", "restart", *(f"citadel-llm@{name}" for name in PORTS))
    names = sorted(PORTS)
    said = machine.run("citadel-llm", "doctor", check=False).stdout
    assert f"{len(PORTS)} models run as agent0 ({', '.join(names)})" in said
    # The setting is not in effect before a restart.
    setting(machine, "VLLM_USER", "dynamic")
    assert f"citadel-llm restart {' '.join(names)}" in machine.run("citadel-llm", "doctor", check=False).stdout


def test_package_is_upgraded_and_purged(versions: Versions) -> None:
    with Machine.boot("users", layers=[versions.engine]) as machine:
        host = Host(machine)
        for version in ("old", "new"):
            machine.copy_in(getattr(versions, version), f"/root/{version}.deb")
        machine.run("apt-get", "-qy", "install", "/root/old.deb")
        setting(machine, "VLLM_USER", "dynamic")
        host.settings(NAME, MODEL=TINY_MODEL, PORT=PORTS[NAME], KV_CACHE_GB=0.25)
        machine.run("systemctl", "enable", "--now", f"citadel-llm@{NAME}")
        before = user(machine, NAME)
        keep = ("-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold")
        machine.run("apt-get", "-qy", *keep, "install", "/root/new.deb")
        assert machine.show(f"citadel-llm@{NAME}", "StatusText")["StatusText"].startswith(NEW_WORDS)
        assert user(machine, NAME) == before
        # A model that a policy-rc.d keeps running keeps its directory.
        machine.write(POLICY, "#!/bin/sh\nexit 101\n")
        machine.run("chmod", "0755", POLICY)
        machine.run("apt-get", "-qy", "remove", "citadel-llm")
        assert (user(machine, NAME), phase(host)) == (before, "ready")
        machine.inside(POLICY).unlink()
        machine.run("apt-get", "-qy", *keep, "install", "/root/new.deb")
        machine.run("apt-get", "-qy", "remove", "citadel-llm")
        assert not list(machine.inside("/run/citadel-llm").iterdir())
        machine.run("apt-get", "-qy", "purge", "citadel-llm")
        for place in ("/var/cache", "/run", "/etc"):
            assert not machine.output("find", place, "-name", "*citadel*"), place
