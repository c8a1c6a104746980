"""Bad input on a booted host: a clear last message, the contract's exit status, no effect on other instances."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import TINY_MODEL, Host

GOOD = {"MODEL": TINY_MODEL, "PORT": 11520, "KV_CACHE_GB": 0.25}
ONLY_VLLM_SEES = "ValueError: "
TEXT = "".join(f"{key}={value}\n" for key, value in GOOD.items())


def failed_start(host: Host, instance: str) -> tuple[int, str, str]:
    """Exit status, status text and last own journal line of a start that fails."""
    unit = f"citadel-llm@{instance}"
    assert host.machine.run("systemctl", "start", unit, check=False).returncode != 0
    shown = host.machine.show(unit, "ExecMainStatus", "StatusText")
    lines = [
        line
        for line in host.journal(instance).splitlines()
        if not line.startswith(("citadel-llm@", "Starting", "Failed to"))
    ]
    return int(shown["ExecMainStatus"]), shown["StatusText"], lines[-1] if lines else ""


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ({**GOOD, "MEMORY_LIMIT_GB": "lots"}, 78, "MEMORY_LIMIT_GB=lots is refused: write a number of gigabytes"),
        ({**GOOD, "MODEL": "/srv/none"}, 78, "MODEL=/srv/none: there is no such directory"),
        ({**GOOD, "MODEL": "org/none"}, 78, "not on this host"),
        ({"MODEL": TINY_MODEL}, 78, "PORT is missing"),
        ({**GOOD, "HOST": "192.0.2.1"}, 78, "HOST=192.0.2.1 is open to other hosts, and no API_KEY_FILE is set"),
        ({**GOOD, "HOST": "192.0.2.1", "ALLOW_UNAUTHENTICATED": "yes"}, 69, "HOST=192.0.2.1 cannot be listened on"),
        ({**GOOD, "API_KEY_FILE": "/etc/citadel-llm/none"}, 78, "API_KEY_FILE=/etc/citadel-llm/none is missing"),
        (
            {**GOOD, "MEMORY_LIMIT_GB": "0.5"},
            78,
            "MEMORY_LIMIT_GB=0.5 is too little for this model and KV_CACHE_GB=0.25",
        ),
        ({**GOOD, "GPU_DEVICES": "0"}, 69, "there is no /dev/nvidia0"),
        ({**GOOD, "VLLM_ARGS": "--no-such-flag"}, 78, "vLLM has no flag --no-such-flag"),
        (
            {**GOOD, "VLLM_ARGS": "'--middleware os.system'"},
            78,
            "--middleware os.system is in Python's standard",
        ),
        ({**GOOD, "MAX_MODEL_LEN": 1}, 78, "MAX_MODEL_LEN=1 has no room for a prompt and an answer"),
        # Errors that only the engine finds, after it has loaded the model.
        ({**GOOD, "VLLM_ARGS": "'--kv-cache-memory-bytes 4096'"}, 78, ONLY_VLLM_SEES),
        ({**GOOD, "VLLM_ARGS": "'--block-size 7'"}, 78, ONLY_VLLM_SEES),
        ({**GOOD, "VLLM_ARGS": "'--max-num-seqs 0'"}, 78, "argument --max-num-seqs: must be at least 1, not 0"),
        ({**GOOD, "VLLM_ARGS": "'--reasoning-parser none'"}, 78, "argument --reasoning-parser: there is no 'none'"),
        ({**GOOD, "VLLM_ARGS": "'--tokenizer /srv/none'"}, 78, "VLLM_ARGS: /srv/none does not exist"),
        ({**GOOD, "VLLM_PORT": "abc"}, 78, "VLLM_PORT=abc is not a whole number"),
        ({**GOOD, "VLLM_ARGS": "'--dtype int3'"}, 78, "argument --dtype: invalid choice: 'int3'"),
    ],
)
def test_refused_start_reports_reason_and_exit_status(
    host: Host, settings: dict[str, str], status: int, words: str
) -> None:
    host.settings("bad", **settings)
    since = host.machine.output("date", "+%s.%N").strip()
    got, text, last = failed_start(host, "bad")
    assert (got, words in text, words in last) == (status, True, True), (got, text, last)
    # Once the model is loaded, vLLM's own processes log what they have raised.
    said = host.machine.output("journalctl", "-u", "citadel-llm@bad", "--since", f"@{since}")
    assert ("Traceback" in said) == (words == ONLY_VLLM_SEES)
    check = host.machine.run("citadel-llm", "check", "bad", check=False)
    assert (check.returncode == 0) == (words == ONLY_VLLM_SEES), check.stderr


def test_missing_chat_template_is_refused(host: Host) -> None:
    """vLLM raises an error of its own class for it."""
    host.settings("bad", **GOOD, VLLM_ARGS="'--chat-template /srv/none.jinja'")
    since = host.machine.output("date", "+%s.%N").strip()
    status, text, _ = failed_start(host, "bad")
    assert (status, "/srv/none.jinja" in text) == (78, True), text
    assert "Traceback" not in host.machine.output("journalctl", "-u", "citadel-llm@bad", "--since", f"@{since}")


def test_truncated_weights_are_refused(host: Host) -> None:
    machine = host.machine
    machine.run("cp", "-r", TINY_MODEL, "/srv/cut")
    try:
        machine.run("truncate", "--size=-1", "/srv/cut/model.safetensors")
        host.settings("bad", **{**GOOD, "MODEL": "/srv/cut"})
        status, text, last = failed_start(host, "bad")
        words = "MODEL=/srv/cut: model.safetensors has "
        assert (status, words in text, "copy the model there again" in last) == (78, True, True), (status, text)
        check = machine.run("citadel-llm", "check", "bad", check=False)
        assert (check.returncode, f"bad: {words}" in check.stderr) == (78, True), check.stderr
    finally:
        machine.run("rm", "-r", "/srv/cut")


def test_weights_in_a_hidden_directory_are_refused(host: Host) -> None:
    """Files that root can read: the check outside the sandbox reports the same error as the start inside it."""
    machine = host.machine
    machine.run("cp", "-r", TINY_MODEL, "/srv/linked")
    machine.run("mkdir", "/var/lib/elsewhere")
    try:
        machine.run("mv", "/srv/linked/model.safetensors", "/var/lib/elsewhere/")
        machine.run("ln", "-s", "/var/lib/elsewhere/model.safetensors", "/srv/linked/")
        host.settings("bad", **{**GOOD, "MODEL": "/srv/linked", "VLLM_ARGS": "--chat-template=/root/template"})
        machine.write("/root/template", "x")
        status, text, _ = failed_start(host, "bad")
        words = "is a link to /var/lib/elsewhere/model.safetensors, and services cannot see /var/lib"
        assert (status, words in text) == (78, True), (status, text)
        check = machine.run("citadel-llm", "check", "bad", check=False)
        assert (check.returncode, words in check.stderr) == (78, True), check.stderr
        assert "VLLM_ARGS: services cannot see /root, so not /root/template" in check.stderr
    finally:
        machine.run("rm", "-r", "/srv/linked", "/var/lib/elsewhere", "/root/template")


def test_model_directory_may_contain_lost_and_found(host: Host) -> None:
    """The root directory of a disk has files that only root may read."""
    machine = host.machine
    machine.run("cp", "-r", TINY_MODEL, "/srv/disk")
    try:
        machine.run("mkdir", "-m", "0700", "/srv/disk/lost+found")
        host.settings("disk", **{**GOOD, "MODEL": "/srv/disk"})
        check = machine.run("citadel-llm", "check", "disk", check=False)
        assert check.returncode == 0, check.stderr
        machine.run("systemctl", "start", "citadel-llm@disk")
        machine.run("systemctl", "stop", "citadel-llm@disk")
        machine.run("sh", "-c", "rm /srv/disk/model.safetensors && mkfifo /srv/disk/a.safetensors")
        status, text, _ = failed_start(host, "disk")
        assert (status, "a.safetensors cannot be read (is not a regular file)" in text) == (78, True), text
        check = machine.run("citadel-llm", "check", "disk", check=False, timeout=60)
        assert check.returncode == 78, check.stderr
    finally:
        machine.run("rm", "-r", "/srv/disk")


def test_missing_settings_file_is_refused(host: Host) -> None:
    status, text, _ = failed_start(host, "nobody")
    assert status == 78
    assert "citadel-llm-nobody: does not exist; create it" in text


def test_refused_settings_are_not_retried(host: Host) -> None:
    host.settings("bad", **{**GOOD, "PORT": 1})
    failed_start(host, "bad")
    shown = host.machine.show("citadel-llm@bad", "ActiveState", "NRestarts", "MemoryMax")
    assert shown == {"ActiveState": "failed", "NRestarts": "0", "MemoryMax": str(4 * 2**30)}


def test_an_unknown_key_is_named_and_does_not_stop_the_start(host: Host) -> None:
    host.settings("odd", **GOOD, MEMORY_LIMIT=4)
    host.machine.run("systemctl", "start", "citadel-llm@odd")
    assert "MEMORY_LIMIT is not a setting and is ignored; did you mean MEMORY_LIMIT_GB?" in host.journal("odd")
    # The port of the running instance is in use now.
    host.settings("late", **GOOD)
    status, text, _ = failed_start(host, "late")
    assert status == 69
    assert "PORT=11520 on 127.0.0.1 is taken" in text
    assert host.machine.show("citadel-llm@odd", "ActiveState")["ActiveState"] == "active"


def test_check_works_without_systemd(host: Host) -> None:
    command = ["/opt/citadel/env/bin/python", "-I", "-m", "hxp_enterprise_llm.services.core.service_manager"]
    assert "settings are good" in host.machine.output(*command, "--check", "test")
    assert "/etc/default/citadel-llm-MODEL" in host.machine.output("env", "COLUMNS=200", *command, "--help")
    done = host.machine.run(*command, "--check", "../x", check=False)
    assert (done.returncode, "is not an instance name" in done.stdout + done.stderr) == (78, True)


def _binary(file: Path) -> None:
    file.write_bytes(bytes(range(128, 256)) * 40)


def _fifo(file: Path) -> None:
    os.mkfifo(file)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (Path.mkdir, "is not a regular file"),
    "10 MB": (lambda file: file.write_bytes(b"#" * 10_000_000), "is larger than 64 KiB"),
    "binary": (_binary, "is not UTF-8"),
    "NUL": (lambda file: file.write_bytes(TEXT.encode() + b"A=\0\n"), "contains a control character"),
    "CRLF": (lambda file: file.write_bytes(TEXT.replace("\n", "\r\n").encode()), "ends in CR LF"),
    "a FIFO": (_fifo, "is not a regular file"),
    "a link": (lambda file: file.symlink_to("/etc/passwd"), "is a symbolic link"),
    "unit syntax": (lambda file: file.write_text(TEXT + "ExecStartPre=/bin/touch\n"), "ExecStartPre is not a setting"),
    "a shell command": (lambda file: file.write_text(TEXT + "HOST=$(touch /run/pwned)\n"), "leave out the $"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_settings_file_is_refused_and_affects_no_other_instance(host: Host, kind: str) -> None:
    machine = host.machine
    make, words = BAD[kind]
    file = machine.inside("/etc/default/citadel-llm-none")
    limits = machine.show("citadel-llm@test", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax")
    make(file)
    try:
        machine.run("systemctl", "daemon-reload")
        check = machine.run("citadel-llm", "check", "none", check=False)
        assert words in check.stderr, check.stderr
        start = machine.run("systemctl", "start", "citadel-llm@none", check=False)
        shown = machine.show("citadel-llm@none", "ExecMainStatus", "StatusText", "MemoryMax")
        if kind == "unit syntax":
            # An unknown key is only a warning, and systemd ignores it.
            assert (check.returncode, start.returncode) == (0, 0), check.stderr
        else:
            assert (check.returncode, shown["ExecMainStatus"]) == (78, "78"), (check, shown)
            assert words in shown["StatusText"]
        assert shown["MemoryMax"] == str(4 * 2**30)
        assert "none" in machine.output("citadel-llm", "list")
        assert not machine.inside("/run/pwned").exists()
        assert machine.show("citadel-llm@test", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax") == limits
    finally:
        machine.run("systemctl", "stop", "citadel-llm@none", check=False)
        machine.run("systemctl", "reset-failed", "citadel-llm@none", check=False)
        machine.run("rm", "-rf", "/etc/default/citadel-llm-none")
        machine.run("systemctl", "daemon-reload")


def checked(host: Host, *words: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    done = host.machine.run("citadel-llm", *words, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["../x", "a b", "é", "x" * 300])
def test_commands_refuse_invalid_instance_names(host: Host, name: str) -> None:
    for verb in ("start", "status", "show", "check", "logs"):
        status, said = checked(host, verb, name)
        assert status in (4, 78), (verb, said)
        assert "Traceback" not in said


def test_check_reports_port_conflicts_and_unreadable_files(host: Host) -> None:
    host.settings("one", MODEL=TINY_MODEL, PORT=11525, KV_CACHE_GB=0.25)
    host.settings("two", MODEL=TINY_MODEL, PORT=11525, KV_CACHE_GB=0.25, REQUIRES="nobody")
    status, said = checked(host, "check", "two")
    assert status == 78
    assert "two: port conflict: PORT=11525 is also the port of one" in said
    assert "two: REQUIRES=nobody: there is no such instance" in said
    host.machine.write("/srv/closed/config.json", "{}")
    host.machine.run("chmod", "0600", "/srv/closed/config.json")
    host.settings("closed", MODEL="/srv/closed", PORT=11526, KV_CACHE_GB=0.25)
    status, said = checked(host, "check", "closed")
    assert (status, "permission denied: agent0 may not read /srv/closed/config.json" in said) == (78, True), said
    host.settings("hidden", MODEL=TINY_MODEL, PORT=11528, KV_CACHE_GB=0.25, API_KEY_FILE="/etc/citadel-llm/none")
    host.machine.run("chmod", "0600", "/etc/default/citadel-llm-hidden")
    done = host.machine.run("citadel-llm", "check", "hidden", "--json", check=False)
    texts = [finding["text"] for finding in json.loads(done.stdout) if finding["instance"] == "hidden"]
    assert done.returncode == 78
    assert texts == [
        "permission denied: agent0 may not read /etc/default/citadel-llm-hidden; "
        "chmod 644 /etc/default/citadel-llm-hidden",
        "API_KEY_FILE=/etc/citadel-llm/none does not exist; create it with: citadel-llm key add hidden",
    ]
    host.settings("taken", MODEL=TINY_MODEL, PORT=11527, KV_CACHE_GB=0.25)
    listen = "import socket, time; s = socket.create_server(('127.0.0.1', 11527)); time.sleep(20)"
    host.machine.run("systemd-run", "--quiet", "--unit=squatter", "python3", "-c", listen)
    host.machine.run("sh", "-c", "until ss -ltn | grep -q :11527; do sleep 0.1; done", timeout=10)
    status, said = checked(host, "check", "taken")
    assert (status, "PORT=11527 is taken by python3 (pid" in said) == (1, True), said
    host.machine.run("systemctl", "stop", "squatter")


def test_dependency_cycle_is_named_and_other_instances_start(host: Host) -> None:
    for name, needed, port in (("one", "two", 11525), ("two", "one", 11526)):
        host.settings(name, MODEL=TINY_MODEL, PORT=port, KV_CACHE_GB=0.25, REQUIRES=needed)
    for verb in ("check", "start"):
        status, said = checked(host, verb, "one")
        assert status == 78 and "one" in said and "two" in said and "cycle" in said, (verb, said)
    assert host.machine.run("systemctl", "start", "citadel-llm@one", check=False).returncode != 0
    host.settings("apart", MODEL=TINY_MODEL, PORT=11527, KV_CACHE_GB=0.25)
    host.machine.run("citadel-llm", "start", "apart")
