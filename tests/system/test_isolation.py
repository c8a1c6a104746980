"""Attacks of a compromised instance on another running instance and on the host.

The attacks (tests/attacks.py) run in the API server of one instance, inside the unit's own sandbox; an engine can do
less (test_engine_secrets.py). As a control, each also runs where it is allowed, on the instance's own processes or
outside the sandbox, and must succeed there. SECURITY.md contains the tables that these tests print.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import attacks
import pytest
from waiting import until

from .conftest import SUMMARY, TINY_MODEL, Host
from .running import FLAGS_OF_SERVER, Outcomes, add_modules, inside, judge, outside, remove_modules

THIEF, VICTIM = "thief", "victim"
PORTS = {THIEF: 11586, VICTIM: 11587}
BEYOND = "192.0.2.1"
OPEN = {
    "CPU affinity of it": "slows it down; it keeps its CPU_CORES",
    "connect to its port": "every process of the host may connect; API_KEY_FILE makes it require a key",
    "writable, executable memory": "docs/decisions/0003",
    "read a world-readable file in /srv/other": "models may be in any directory that is not hidden",
    "read another's settings": "settings files are world-readable and hold no secrets",
    "read /etc/passwd": "libraries look up names in it",
}
"""Attacks that are not refused, and why."""
SIGNALS = {"signal 0 to it", "SIGURG to it", "SIGURG by a pidfd", "abstract socket", "SIGKILL to it"}
"""Attacks that only Landlock 6 (Linux 6.12) refuses."""
PACKETS = {"connect beyond loopback", "ask a resolver on 127.0.0.53"}
"""Attacks that only the packet filter refuses; test_kernel.py runs them where systemd filters packets."""
BY_USER = (SIGNALS - {"abstract socket"}) | {"CPU affinity of it"}
"""Attacks that the kernel refuses between users, with or without Landlock."""
PORTS_OF_OTHERS = {"listen on an unused port"}
"""Attacks that only Landlock 4 (Linux 6.7) refuses."""

NO_LANDLOCK = "[Service]\nSystemCallFilter=~landlock_create_ruleset\n"
LISTENERS = f"""
import os, socket, time
there = socket.socket(socket.AF_UNIX)
there.bind({attacks.SOCKET!r})
os.chmod({attacks.SOCKET!r}, 0o666)
there.listen()
others = [socket.create_server(address) for address in ({attacks.RESOLVER}, ({BEYOND!r}, 9))]
time.sleep(600)
"""
QUOTAS_SHARED = dict.fromkeys(attacks.QUOTAS, "the kernel counts them for each user; VLLM_USER=dynamic prevents it")
PACKET = "import socket; socket.create_connection(('192.0.2.1', 9), 3)"


class Pair:
    """The two models."""

    def __init__(self, host: Host) -> None:
        self.host, self.machine = host, host.machine
        self.keys: dict[str, str] = {}

    def start(self) -> None:
        for place in attacks.FOR_ALL:
            self.machine.write(f"{place}/for-all", "a file of another program, which forgot to close it\n")
        for name, port in PORTS.items():
            self.host.settings(
                name,
                MODEL=TINY_MODEL,
                PORT=port,
                KV_CACHE_GB=0.25,
                DRAIN_TIMEOUT_SEC=2,
                VLLM_ARGS=f"'{FLAGS_OF_SERVER}'",
            )
            self.keys[name] = self.machine.output("citadel-llm", "key", "add", name)
        self.machine.run("systemctl", "start", *(f"citadel-llm@{name}" for name in PORTS))
        for name in PORTS:
            self.machine.write(f"/var/cache/citadel-llm/{name}/secret", f"the secret of {name}")
            place = f"/var/cache/citadel-llm/{name}"
            self.machine.run("sh", "-c", f"cd {place}; chown --reference=. secret; chmod 600 secret")

    def switch(self, user: str) -> None:
        """Restart both as VLLM_USER=`user`."""
        self.machine.run("sed", "-i", f"s/^VLLM_USER=.*/VLLM_USER={user}/", "/etc/default/citadel-llm")
        self.machine.run("systemctl", "daemon-reload")
        self.restart(*PORTS)

    def restart(self, *names: str) -> None:
        """Restart instances; systemd limits the number of starts in two minutes."""
        units = [f"citadel-llm@{name}" for name in names]
        self.machine.run("systemctl", "reset-failed", *units, check=False)
        self.machine.run("systemctl", "restart", *units)

    def user(self, name: str) -> str:
        """The UID of an instance."""
        pid = self.machine.show(f"citadel-llm@{name}", "MainPID")["MainPID"]
        return self.machine.output("stat", "-c", "%u", f"/proc/{pid}")

    def inside(self, name: str, expression: str) -> Any:
        """Evaluate a Python expression in the API server of an instance."""
        url = f"http://127.0.0.1:{PORTS[name]}"
        return inside(self.machine, name, url, self.keys[name], expression, server=True)

    def status(self, name: str, key: str) -> str:
        """The HTTP status of an instance's list of models."""
        ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {key}"]
        return self.machine.output(*ask, f"http://127.0.0.1:{PORTS[name]}/v1/models")

    def outside(self, expression: str, user: str = "agent0") -> Any:
        """Evaluate a Python expression in a process of `user` outside the sandbox."""
        return outside(self.machine, expression, user)


@pytest.fixture(scope="module")
def pair(machine: Any) -> Iterator[Pair]:
    """Both instances, running; they and their files are removed afterwards."""
    host = Host(machine)
    pair = Pair(host)
    try:
        add_modules(machine)
        pair.start()
        yield pair
    finally:
        for instance in sorted(host.made):
            host.forget(instance)
        machine.run("rm", "-r", *attacks.FOR_ALL)
        for name in PORTS:
            machine.inside(f"/etc/citadel-llm/{name}.keys").unlink(missing_ok=True)
        remove_modules(machine)


def landlock(pair: Pair) -> int:
    code = "from hxp_enterprise_llm.system.isolation import landlock_version as version"
    return int(pair.host.python(f"{code}; print(version())"))


def open_without(landlock: int, dynamic: bool = False) -> dict[str, str]:
    """Attacks that a kernel with this version of Landlock does not refuse; all others must be refused.

    `dynamic`: the instances have users of their own.
    """
    signals = SIGNALS - BY_USER if dynamic else SIGNALS
    missing = (signals if landlock < 6 else set()) | (PORTS_OF_OTHERS if landlock < 4 else set())
    allowed = OPEN | dict.fromkeys(missing, f"this kernel has Landlock {landlock}")
    return {attack: why for attack, why in allowed.items() if not dynamic or attack not in BY_USER}


def attack_neighbour(pair: Pair, landlock: int, dynamic: bool = False) -> None:
    """Run all attacks of the thief on the victim."""
    before = pair.machine.show(f"citadel-llm@{VICTIM}", "MainPID", "NRestarts")

    def at(name: str, held: str, holder: dict[str, int]) -> str:
        attacks = f"attacks.on_neighbour({name!r}, {PORTS[name]}, {held!r}, {holder['pid']}, {holder['address']})"
        return f"attacks.attempt({attacks})"

    held = {name: pair.inside(name, f"attacks.hold({name!r})") for name in PORTS}
    controls = {
        "on itself": pair.inside(THIEF, at(THIEF, THIEF, held[THIEF])),
        # A process of the same user outside the sandbox.
        "outside": pair.outside(
            f"(lambda held: attacks.attempt(attacks.on_neighbour({VICTIM!r}, {PORTS[VICTIM]}, 'outside', held['pid'], "
            "held['address'])))(attacks.hold('outside'))"
        ),
    }
    outcomes = pair.inside(THIEF, at(VICTIM, VICTIM, held[VICTIM]))
    SUMMARY.append(f"Landlock {landlock}{', VLLM_USER=dynamic' if dynamic else ''}")
    assert not judge("a model to its neighbour", outcomes, controls, open_without(landlock, dynamic))
    assert pair.machine.show(f"citadel-llm@{VICTIM}", "MainPID", "NRestarts") == before


def attack_quotas(pair: Pair, allowed: dict[str, str]) -> None:
    """Use up in the thief what the kernel counts for each user, and observe the victim.

    The victim must keep serving and accept the revocation of a key, also where the attack is `allowed`.
    """
    machine, outcomes, itself = pair.machine, Outcomes(), Outcomes()
    before = machine.show(f"citadel-llm@{VICTIM}", "MainPID", "NRestarts"), pair.host.server(VICTIM)
    for quota in attacks.QUOTAS:

        def seen_by(name: str, quota: str = quota) -> list[str]:
            """The outcome if the attack has succeeded on the user of an instance."""
            # In a process outside the sandbox, because the instance may accept no connection.
            left: Outcomes = pair.outside(f"attacks.attempt({{{quota!r}: attacks.QUOTAS[{quota!r}]}})", pair.user(name))
            outcome, detail = left[quota]
            return ["refused", "no effect"] if outcome == "got" else ["got", detail]

        assert seen_by(VICTIM)[0] == "refused", "used up before the attack"
        used = pair.inside(THIEF, f"attacks.use_up({quota!r})")
        outcomes[quota], itself[quota] = seen_by(VICTIM), seen_by(THIEF)
        SUMMARY.append(f"{quota}: {used} used by one model; another model of its user gets {itself[quota][1]}")
        key = machine.output("citadel-llm", "key", "add", VICTIM, "--name", "second")
        machine.run("systemctl", "reload", f"citadel-llm@{VICTIM}")
        assert pair.status(VICTIM, key) == "200"
        machine.run("citadel-llm", "key", "revoke", VICTIM, "second")
        assert pair.status(VICTIM, key) == "401"
        assert pair.inside(VICTIM, "'serves'") == "serves"
        pair.restart(THIEF)
        until(lambda: seen_by(VICTIM)[0] == "refused", f"{quota} are free after the end of the attack")
    assert not judge("what the kernel counts for each user", outcomes, {"on itself": itself}, allowed)
    after = machine.show(f"citadel-llm@{VICTIM}", "MainPID", "NRestarts"), pair.host.server(VICTIM)
    assert after == before, "the main process or the server was replaced"


def attack_host(pair: Pair, landlock: int) -> None:
    """Run all attacks of the thief on the host."""
    machine = pair.machine
    group = machine.show(f"citadel-llm@{THIEF}", "ControlGroup")["ControlGroup"]
    files = [f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes", f"/sys/fs/cgroup{group}/memory.max"]
    limit = next(file for file in files if machine.inside(file).exists())
    machine.run("ip", "address", "add", f"{BEYOND}/32", "dev", "lo")
    machine.run("systemd-run", "--quiet", "--collect", "--unit=beyond", "/usr/bin/python3", "-c", LISTENERS)
    try:
        machine.run("sh", "-c", f"until ss -ltn | grep -q {BEYOND}:9; do sleep 0.1; done", timeout=10)
        # Packet filters need BPF, which a container may lack; then a plain unit has no filter either.
        plain = ["systemd-run", "--quiet", "--wait", "--property=IPAddressDeny=any", "/usr/bin/python3", "-c", PACKET]
        filters = machine.run(*plain, check=False).returncode != 0
        attack = f"attacks.attempt(attacks.on_host({THIEF!r}, {limit!r}, {BEYOND!r}))"
        outcomes = pair.inside(THIEF, attack)
        controls = {"agent0 outside": pair.outside(attack), "root": pair.outside(attack, "root")}
    finally:
        machine.run("systemctl", "stop", "beyond")
        machine.inside(attacks.SOCKET).unlink(missing_ok=True)
        machine.run("ip", "address", "del", f"{BEYOND}/32", "dev", "lo")
    allowed = open_without(landlock)
    if not filters:
        allowed |= dict.fromkeys(PACKETS, "systemd in this container cannot filter packets")
    assert not judge("a model to its host", outcomes, controls, allowed)


def test_instance_cannot_attack_another_instance(pair: Pair) -> None:
    attack_neighbour(pair, landlock(pair))


def test_instance_cannot_attack_the_host(pair: Pair) -> None:
    attack_host(pair, landlock(pair))


def test_instances_of_one_user_share_kernel_quotas(pair: Pair) -> None:
    attack_quotas(pair, QUOTAS_SHARED)


def test_missing_landlock_is_reported_and_other_isolation_holds(pair: Pair) -> None:
    """All attacks run."""
    with without_landlock(pair):
        said = pair.host.journal(THIEF)
        assert "Models can signal each other: this kernel has Landlock 0" in said
        assert f"also that of a stopped model, not only on {PORTS[THIEF]}, " in said
        attack_neighbour(pair, 0)
        attack_host(pair, 0)


@contextlib.contextmanager
def without_landlock(pair: Pair) -> Iterator[None]:
    """Refuse the thief Landlock's system call, as an older kernel does."""
    unit = f"citadel-llm@{THIEF}"
    drop_in = f"/run/systemd/system/{unit}.service.d/old.conf"
    pair.machine.write(drop_in, NO_LANDLOCK)
    try:
        pair.machine.run("systemctl", "daemon-reload")
        pair.restart(THIEF)
        yield
    finally:
        pair.machine.inside(drop_in).unlink()
        pair.machine.run("systemctl", "daemon-reload")


def test_instance_with_its_own_user_cannot_attack_another_instance(pair: Pair) -> None:
    """Also on a kernel without Landlock, and not through what the kernel counts for each user."""
    pair.switch("dynamic")
    try:
        assert pair.user(THIEF) != pair.user(VICTIM)
        attack_neighbour(pair, landlock(pair), dynamic=True)
        attack_host(pair, landlock(pair))
        attack_quotas(pair, {})
        with without_landlock(pair):
            attack_neighbour(pair, 0, dynamic=True)
            attack_host(pair, 0)
    finally:
        pair.switch("agent0")


def test_unit_allows_only_devices_and_network_named_in_settings(host: Host) -> None:
    """Checked in systemd's properties without a start: this host has neither a GPU nor a network."""
    wanted = (
        "NoExecPaths",
        "PrivateDevices",
        "DeviceAllow",
        "DevicePolicy",
        "IPAddressAllow",
        "IPAddressDeny",
        "MemoryDenyWriteExecute",
    )
    host.settings("plain", MODEL=TINY_MODEL, PORT=11588)
    plain = host.machine.show("citadel-llm@plain", *wanted)
    assert plain["PrivateDevices"] == "yes" and "nvidia" not in plain["DeviceAllow"]
    assert {*plain["IPAddressAllow"].split()} == {"127.0.0.1/32", "::1/128"}
    host.settings("gpu", MODEL=TINY_MODEL, PORT=11589, GPU_DEVICES="all")
    devices = ("systemctl", "show", "--value", "--property=DeviceAllow", "citadel-llm@gpu")
    assert "char-nvidia rw" in host.machine.output(*devices).splitlines()
    host.settings("gpu", MODEL=TINY_MODEL, PORT=11589, GPU_DEVICES="0,1")
    gpu = host.machine.show("citadel-llm@gpu", *wanted)
    opened = set(host.machine.output(*devices).splitlines())
    assert "/var/cache" in plain["NoExecPaths"] and "/var/cache" not in gpu["NoExecPaths"], "it compiles code"
    assert gpu["PrivateDevices"] == "no" and {"/dev/nvidia0 rw", "/dev/nvidia1 rw"} <= opened
    assert not {"/dev/nvidia2 rw", "char-nvidia rw"} & opened
    assert {*gpu["IPAddressAllow"].split()} == {*plain["IPAddressAllow"].split()} and gpu["DevicePolicy"] == "closed"
    host.settings("hub", MODEL="a/b", PORT=11591, KV_CACHE_GB=1, ALLOW_DOWNLOAD="yes")
    hub = host.machine.show("citadel-llm@hub", *wanted)
    assert "0.0.0.0/0" in hub["IPAddressAllow"] and "::/0" in hub["IPAddressAllow"]
    assert hub["DeviceAllow"] == plain["DeviceAllow"] and hub["PrivateDevices"] == "yes"
    # A file with an error allows nothing.
    host.settings("bad", MODEL="a/b", PORT="x", GPU_DEVICES="all", ALLOW_DOWNLOAD="yes")
    bad = host.machine.show("citadel-llm@bad", *wanted)
    assert {key: {*value.replace("/bad", "/plain").split()} for key, value in bad.items()} == {
        key: {*value.split()} for key, value in plain.items()
    }


def test_exposure_is_within_the_bounds(host: Host) -> None:
    host.settings("gpu", MODEL=TINY_MODEL, PORT=11589, GPU_DEVICES="0", ALLOW_DOWNLOAD="yes")
    bounds = {"citadel-llm@test": 1.1, "citadel-llm-monitor": 0.9, "citadel-llm@gpu": 1.3, "citadel-llm-log@test": 0.2}
    for unit, bound in bounds.items():
        last = host.machine.output("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
        SUMMARY.append(last.removeprefix("→ "))
        assert float(last.split(": ")[1].split()[0]) <= bound, last
