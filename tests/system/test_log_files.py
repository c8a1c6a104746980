"""LOG_TO_FILE on a booted host: the file has every line of the journal, through rotations, restarts and refusals."""

import time
from collections.abc import Iterator

import pytest

from .conftest import TINY_MODEL, Host

GOOD = {"MODEL": TINY_MODEL, "PORT": 11595, "KV_CACHE_GB": 0.25}
DIRECTORY = "/var/log/citadel-llm"
FORCE = ("logrotate", "--force", "/etc/logrotate.d/citadel-llm")


@pytest.fixture
def logging(host: Host) -> Iterator[Host]:
    """A host with LOG_TO_FILE=yes, and no log file yet."""
    switch(host, "yes")
    yield host
    host.machine.run("systemctl", "stop", "citadel-llm@*")
    switch(host, "no")
    host.machine.run("sh", "-c", f"rm -f {DIRECTORY}/* /var/lib/citadel-llm/log/*")


def switch(host: Host, value: str) -> None:
    host.machine.run("sed", "-i", f"s/^LOG_TO_FILE=.*/LOG_TO_FILE={value}/", "/etc/default/citadel-llm")
    host.machine.run("systemctl", "daemon-reload")


def messages(host: Host, name: str) -> list[str]:
    """The messages in all log files of an instance, oldest first, without time, host and sender."""
    files = host.machine.output("sh", "-c", f"ls -tr {DIRECTORY}/{name}.log*").split()
    text = host.machine.output("zcat", "--force", *files)
    return [line.split(": ", 1)[-1] for line in text.splitlines() if r"\x0d" not in line]


def wait_for(host: Host, name: str, words: str) -> None:
    end = time.monotonic() + 30
    while not any(words in message for message in messages(host, name)):
        assert time.monotonic() < end, f"no line with {words!r}"
        time.sleep(0.2)


def in_journal(host: Host, name: str) -> list[str]:
    """The messages of an instance in the journal, in the same form."""
    host.machine.run("journalctl", "--sync")
    shown = host.machine.output("journalctl", "--unit", f"citadel-llm@{name}", "--output=short-iso", "--quiet")
    # Progress bars hold carriage returns: journalctl prints no such message, the log file escapes them.
    return [line.split(": ", 1)[-1] for line in shown.splitlines() if not line.endswith("B blob data]")]


def state(host: Host, name: str) -> str:
    return host.machine.show(f"citadel-llm-log@{name}", "ActiveState")["ActiveState"]


def wait_until_ended(host: Host, name: str) -> None:
    end = time.monotonic() + 20
    while state(host, name) != "inactive":
        assert time.monotonic() < end, state(host, name)
        time.sleep(0.2)


def test_log_to_file_is_off_by_default(host: Host) -> None:
    host.settings("quiet", **GOOD)
    host.machine.run("systemctl", "start", "citadel-llm@quiet")
    assert state(host, "quiet") == "inactive"
    assert not host.machine.output("find", DIRECTORY, "-name", "quiet*")


def test_every_line_is_logged_once_despite_rotations_and_restarts(logging: Host) -> None:
    machine = logging.machine
    machine.run("apt-get", "-qy", "install", "logrotate")
    logging.settings("told", **GOOD)
    machine.run("systemctl", "start", "citadel-llm@told")
    wait_for(logging, "told", "Started citadel-llm@told.service")
    assert machine.output("stat", "-c", "%U:%G %a", f"{DIRECTORY}/told.log") == "agent0:adm 640"
    machine.run(*FORCE)
    machine.run("systemctl", "restart", "citadel-llm@told")
    machine.run(*FORCE)
    # Killed as by a crash: the follower resumes where it was.
    machine.run("systemctl", "kill", "--signal=SIGKILL", "citadel-llm-log@told")
    machine.run("systemctl", "stop", "citadel-llm@told")
    wait_until_ended(logging, "told")
    machine.run("systemctl", "start", "citadel-llm@told")
    wait_for(logging, "told", "Started citadel-llm@told.service")
    machine.run("systemctl", "stop", "citadel-llm@told")
    wait_until_ended(logging, "told")
    assert messages(logging, "told") == in_journal(logging, "told")
    assert len(machine.output("find", DIRECTORY, "-name", "told.log*").split()) == 3
    assert sum("Started citadel-llm@told.service" in line for line in messages(logging, "told")) == 3


def test_a_refused_instance_logs_its_reason(logging: Host) -> None:
    logging.settings("bad", **{**GOOD, "PORT": 1})
    assert logging.machine.run("systemctl", "start", "citadel-llm@bad", check=False).returncode
    wait_until_ended(logging, "bad")
    assert any("PORT=1 is refused" in message for message in messages(logging, "bad"))


def test_missing_log_directory_is_reported_and_used_once_created(logging: Host) -> None:
    machine = logging.machine
    machine.run("sed", "-i", "s|^VLLM_LOG_PATH=.*|VLLM_LOG_PATH=/srv/logs|", "/etc/default/citadel-llm")
    try:
        logging.settings("told", **GOOD)
        machine.run("systemctl", "start", "citadel-llm@told")
        check = machine.run("citadel-llm", "check", "told", check=False)
        assert (check.returncode, "VLLM_LOG_PATH=/srv/logs is not" in check.stderr) == (0, True), check.stderr
        machine.run("journalctl", "--sync")
        journal = machine.output("journalctl", "-u", "citadel-llm-log@told", "-o", "cat")
        assert "/srv/logs/told.log: No such file or directory" in journal
        machine.run("install", "-d", "-o", "agent0", "-g", "adm", "-m", "0750", "/srv/logs")
        machine.run("systemctl", "restart", "citadel-llm-log@told")
        end = time.monotonic() + 20
        while not machine.inside("/srv/logs/told.log").exists():
            assert time.monotonic() < end
            time.sleep(0.2)
        assert not machine.output("find", DIRECTORY, "-name", "told*")
    finally:
        machine.run("sed", "-i", f"s|^VLLM_LOG_PATH=.*|VLLM_LOG_PATH={DIRECTORY}|", "/etc/default/citadel-llm")


def test_followers_end_when_log_to_file_is_switched_off(logging: Host) -> None:
    logging.settings("told", **GOOD)
    logging.machine.run("systemctl", "start", "citadel-llm@told")
    wait_for(logging, "told", "Started citadel-llm@told.service")
    switch(logging, "no")
    wait_until_ended(logging, "told")
    assert logging.machine.show("citadel-llm@told", "ActiveState")["ActiveState"] == "active"
