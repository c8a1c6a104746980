"""The main process when loading stalls, a reload fails, or a request has no key; see test_faults.py for the rest."""

import json
import time

import pytest
from waiting import until

from .conftest import TINY_MODEL, Host

SETTINGS = {"MODEL": TINY_MODEL, "PORT": 11540, "KV_CACHE_GB": 0.25}
# A request that a dying server had accepted is lost; the next request waits for the new server.
RETRY = "--retry 3 --retry-all-errors --retry-delay 0"
STATUS_OF = f"curl -s {RETRY} -o /root/answer -w %{{http_code}} -H 'Content-Type: application/json' "
REQUEST = """-d '{"prompt": "x", "max_tokens": 1}' http://127.0.0.1:11540/v1/completions"""


def wait_for(host: Host, instance: str, name: str, value: str) -> float:
    """Wait until a property of the unit has a value; return the seconds waited."""
    return until(lambda: host.machine.show(f"citadel-llm@{instance}", name)[name] == value, f"{name} is {value}")


def test_the_start_timeout_is_extended_while_loading_progresses(host: Host) -> None:
    """On half a core, because with a whole core the start may take less than four seconds."""
    host.settings("slow", **SETTINGS, START_TIMEOUT_SEC=4, CPU_CORES=0.5)
    begin = time.monotonic()
    host.machine.run("systemctl", "start", "citadel-llm@slow")
    assert time.monotonic() - begin > 4, "too quick to show anything"


def test_stalled_start_ends_at_the_timeout(host: Host) -> None:
    host.settings("hung", **SETTINGS, START_TIMEOUT_SEC=3)
    host.machine.run("systemctl", "start", "--no-block", "citadel-llm@hung")
    wait_for(host, "hung", "StatusText", "Importing vLLM")
    stop = "until pkill -STOP -u agent0 -f multiprocessing.forkserver; do sleep 0.1; done"
    host.machine.run("sh", "-c", stop, timeout=20)
    print(f"stalled start ended after {wait_for(host, 'hung', 'ExecMainStatus', '75'):.1f} s")
    assert "no progress for 3 s" in host.machine.show("citadel-llm@hung", "StatusText")["StatusText"]
    assert not host.machine.run("pgrep", "-u", "agent0", check=False).stdout


def test_a_fork_server_killed_during_the_import_is_the_reason(host: Host) -> None:
    host.settings("killed", **SETTINGS, RESTART_POLICY="no")
    host.machine.run("systemctl", "start", "--no-block", "citadel-llm@killed")
    wait_for(host, "killed", "StatusText", "Importing vLLM")
    kill = "until pkill -KILL -u agent0 -f multiprocessing.forkserver; do sleep 0.1; done"
    host.machine.run("sh", "-c", kill, timeout=20)
    wait_for(host, "killed", "ExecMainStatus", "70")
    status = host.machine.show("citadel-llm@killed", "StatusText")["StatusText"]
    assert "was killed by SIGKILL while it imported vLLM" in status
    assert not host.machine.run("pgrep", "-u", "agent0", check=False).stdout


def test_a_stop_ends_in_time_though_a_stream_outlasts_the_drain(host: Host) -> None:
    """Two dozen answers on half a core, to a client that hardly reads."""
    host.settings("streaming", **SETTINGS, DRAIN_TIMEOUT_SEC=1, CPU_CORES=0.5)
    host.machine.run("systemctl", "start", "citadel-llm@streaming")
    body = {"prompt": "x", "max_tokens": 1900, "n": 24, "stream": True, "ignore_eos": True}
    host.machine.write("/root/body", json.dumps(body))
    ask = "curl -sN --limit-rate 100 -o /root/stream -H 'Content-Type: application/json' -d @/root/body"
    url = "http://127.0.0.1:11540/v1/completions"
    begin = time.monotonic()
    host.machine.run("sh", "-c", f"{ask} {url} & sleep 2; systemctl stop citadel-llm@streaming; kill $!; true")
    print(f"stopped {time.monotonic() - begin - 2:.1f} s after the signal, with a drain of 1 s")
    shown = host.machine.show("citadel-llm@streaming", "Result", "ActiveState")
    assert shown == {"Result": "success", "ActiveState": "inactive"}
    journal = host.journal("streaming")
    assert "Requests were still in flight after 1 s and were aborted" in journal
    assert "timed out" not in journal
    assert not host.machine.run("pgrep", "-u", "agent0", check=False).stdout


def wait_until_ready(host: Host, instance: str) -> None:
    """Wait until the main process reports Ready; a waiting client may be answered shortly before."""
    unit = f"citadel-llm@{instance}"
    until(lambda: host.machine.show(unit, "StatusText")["StatusText"].startswith("Ready"), "the instance is ready")


def test_key_is_required_and_not_exposed(host: Host) -> None:
    host.machine.write("/etc/citadel-llm/parts.key", "secret-of-the-test\n")
    host.machine.run("chmod", "0600", "/etc/citadel-llm/parts.key")
    host.settings("keyed", **SETTINGS, API_KEY_FILE="/etc/citadel-llm/parts.key")
    host.machine.run("systemctl", "start", "citadel-llm@keyed")
    assert host.machine.output("sh", "-c", f"{STATUS_OF} {REQUEST}") == "401"
    key = "-H 'Authorization: Bearer secret-of-the-test'"
    assert host.machine.output("sh", "-c", f"{STATUS_OF} {key} {REQUEST}") == "200"
    seen = host.machine.output("systemctl", "show", "citadel-llm@keyed") + host.journal("keyed")
    seen += host.machine.output(
        "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '; true"
    )
    assert "secret-of-the-test" not in seen


def test_empty_key_file_does_not_disable_authentication(host: Host) -> None:
    """A start with an empty key file is refused; after a reload with it, every request is refused."""
    host.machine.write("/etc/citadel-llm/empty.key", "\n")
    host.settings("open", **SETTINGS, API_KEY_FILE="/etc/citadel-llm/empty.key")
    assert host.machine.run("systemctl", "start", "citadel-llm@open", check=False).returncode != 0
    shown = host.machine.show("citadel-llm@open", "ExecMainStatus", "StatusText")
    assert (shown["ExecMainStatus"], "holds no key" in shown["StatusText"]) == ("78", True), shown
    host.settings("open", **SETTINGS)
    host.machine.run("systemctl", "start", "citadel-llm@open")
    with_key = (
        "".join(f"{key}={value}\n" for key, value in SETTINGS.items()) + "API_KEY_FILE=/etc/citadel-llm/empty.key\n"
    )
    host.machine.write("/etc/default/citadel-llm-open", with_key)
    # The reload reads the key file although the generator has not seen the new setting.
    host.machine.run("systemctl", "reload", "citadel-llm@open")
    assert host.machine.output("sh", "-c", f"{STATUS_OF} {REQUEST}") == "401"
    assert "until then all requests are refused" in host.journal("open")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("beside", "still serving with the settings before the reload"),
        ("restart", "going back to the settings before the reload"),
    ],
)
def test_failed_reload_returns_to_the_old_settings(host: Host, method: str, words: str) -> None:
    host.settings("back", **SETTINGS, RELOAD_METHOD=method)
    host.machine.run("systemctl", "start", "citadel-llm@back")
    refused = {"VLLM_ARGS": "'--max-num-seqs 300 --max-num-batched-tokens 200'"}
    host.settings("back", **SETTINGS, **refused, RELOAD_METHOD=method)
    done = host.machine.run("citadel-llm", "reload", "back", check=False)
    assert done.returncode == 78, done
    assert "still serving with the old ones" in done.stderr
    told = json.loads(host.machine.output("cat", "/run/citadel-llm/back/state.json"))["last_reload"]
    assert told["outcome"] == "reverted"
    assert host.machine.output("sh", "-c", f"{STATUS_OF} {REQUEST}", timeout=60) == "200"
    until(lambda: words in host.journal("back"), f"the journal has: {words}")
    wait_until_ready(host, "back")
