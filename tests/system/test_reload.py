"""A reload under load: no request fails or is aborted."""

import json
import re

import pytest
from base_tree import PROJECT

from .conftest import TINY_MODEL, Host

PORT = 11580
RELOADS = 10
CLIENT = PROJECT / "tests/steady_client.py"
RELOAD = f"""
rm -f /root/enough
ask="/opt/citadel/env/bin/python -I /root/client.py http://127.0.0.1:{PORT}/v1/completions INSTANCE"
$ask /root/enough >/root/asked & sleep 2
for number in $(seq {RELOADS}); do
    sed -i "s/^MAX_MODEL_LEN=.*/MAX_MODEL_LEN=$((1000 + number))/" /etc/default/citadel-llm-INSTANCE
    systemctl reload citadel-llm@INSTANCE || {{ touch /root/enough; exit 1; }}
    sleep 1
done
touch /root/enough
wait
"""


@pytest.mark.parametrize(("method", "beside"), [("auto", True), ("restart", False)])
def test_no_request_fails_through_ten_reloads(host: Host, method: str, beside: bool) -> None:
    instance = f"busy-{method}"
    unit = f"citadel-llm@{instance}"
    settings = {"MODEL": TINY_MODEL, "PORT": PORT, "KV_CACHE_GB": 0.25, "MAX_MODEL_LEN": 1000}
    host.settings(instance, **settings, RELOAD_METHOD=method)
    machine = host.machine
    machine.copy_in(CLIENT, "/root/client.py")
    machine.run("systemctl", "start", unit)
    before = machine.show(unit, "MainPID"), fork_server(host)
    machine.run("sh", "-c", RELOAD.replace("INSTANCE", instance), timeout=300)
    asked = json.loads(machine.output("cat", "/root/asked"))
    print(f"{RELOADS} reloads, {method}: {asked['counts']} answered, {len(asked['failures'])} failed")
    assert not asked["failures"], asked["failures"][:5]
    assert min(asked["counts"].values()) > RELOADS * 10
    assert (machine.show(unit, "MainPID"), fork_server(host)) == before
    journal = host.journal(instance)
    assert journal.count(f"Ready: {instance} on ") == 1 + RELOADS
    assert journal.count("new requests wait") == (0 if beside else RELOADS)
    told = json.loads(machine.output("cat", f"/run/citadel-llm/{instance}/state.json"))["last_reload"]
    assert (told["outcome"], told["waited"]) == ("done", "" if beside else "RELOAD_METHOD=restart")
    models = machine.output("curl", "-s", f"http://127.0.0.1:{PORT}/v1/models")
    assert json.loads(models)["data"][0]["max_model_len"] == 1000 + RELOADS


def fork_server(host: Host) -> str:
    """PID of the fork server of the only instance that runs in the shared machine."""
    return host.machine.output("pgrep", "-f", "^VLLM::ForkServer")


def test_reload_sets_and_unsets_environment_variables(host: Host) -> None:
    """Including variables that a library reads when it is loaded, long before the server is forked."""
    settings = {"MODEL": TINY_MODEL, "PORT": PORT, "KV_CACHE_GB": 0.25}
    host.settings("variables", **settings)
    host.machine.run("systemctl", "start", "citadel-llm@variables")

    def reloaded(**more: str | int) -> tuple[int, int]:
        """Number of the engine's threads, and of its DEBUG lines in the journal, after a reload."""
        host.settings("variables", **settings, **more)
        host.machine.run("systemctl", "reload", "citadel-llm@variables")
        ask = f"http://127.0.0.1:{PORT}/v1/completions"
        body = json.dumps({"prompt": "x" * 200, "max_tokens": 4})
        host.machine.run("curl", "-sf", "-H", "Content-Type: application/json", "-d", body, ask)
        engine = host.machine.output("pgrep", "-n", "-f", "^VLLM::EngineCore")
        threads = len(host.machine.output("ls", f"/proc/{engine}/task").splitlines())
        return threads, len(re.findall(rf"pid={engine}\D.*DEBUG", host.journal("variables")))

    one, quiet = reloaded(OMP_NUM_THREADS=1)
    three, loud = reloaded(OMP_NUM_THREADS=3, VLLM_LOGGING_LEVEL="DEBUG")
    again, silence = reloaded(OMP_NUM_THREADS=1)
    print(f"threads of the engine: {one}, {three}, {again}; debugging lines: {quiet}, {loud}, {silence}")
    assert one == again < three
    assert (quiet, silence) == (0, 0) and loud > 0


def test_requests_wait_if_the_engine_dies_during_a_reload(host: Host) -> None:
    """A changed variable requires an import, so loading takes long. Requests wait for the new server."""
    settings = {"MODEL": TINY_MODEL, "PORT": PORT, "KV_CACHE_GB": 0.25}
    host.settings("dying", **settings)
    host.machine.run("systemctl", "start", "citadel-llm@dying")
    host.settings("dying", **settings, VLLM_LOGGING_LEVEL="WARNING", MAX_MODEL_LEN=1000)
    ask = f"curl -sf -H 'Content-Type: application/json' -d @/root/body http://127.0.0.1:{PORT}/v1/completions"
    host.machine.write("/root/body", json.dumps({"prompt": "x", "max_tokens": 4}))
    reloading = "systemctl reload citadel-llm@dying & sleep 1; pkill -KILL -f '^VLLM::EngineCore'; sleep 0.5"
    host.machine.run("sh", "-c", f"{reloading}; {ask} || exit 1; wait $!")
    journal = host.journal("dying")
    assert "ended, while another one is starting" in journal
    assert journal.count("Ready: dying on ") == 2, "the first start and the reload"
    models = host.machine.output("curl", "-s", f"http://127.0.0.1:{PORT}/v1/models")
    assert json.loads(models)["data"][0]["max_model_len"] == 1000
    state = json.loads(host.machine.output("cat", "/run/citadel-llm/dying/state.json"))
    assert state["failures"] == {"engine-died": 1}


def test_stream_with_tokens_may_outlast_the_drain_timeout(host: Host) -> None:
    """Two dozen choices at once on half a core, because the tiny model would finish too soon."""
    tokens, choices = 1900, 24
    drain = 2.0
    settings = {"MODEL": TINY_MODEL, "PORT": PORT, "KV_CACHE_GB": 0.25, "CPU_CORES": 0.5, "DRAIN_TIMEOUT_SEC": drain}
    host.settings("long", **settings)
    host.machine.run("systemctl", "start", "citadel-llm@long")
    more = {"n": choices, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    host.machine.write("/root/body", json.dumps({"prompt": "x", "max_tokens": tokens, **more}))
    ask = f"curl -sfN -H 'Content-Type: application/json' -d @/root/body http://127.0.0.1:{PORT}/v1/completions"
    script = f"{ask} >/root/stream & sleep 1; systemctl reload citadel-llm@long; date +%s.%N; wait $!; date +%s.%N"
    reloaded, ended = map(float, host.machine.output("sh", "-c", script).split())
    print(f"the stream ended {ended - reloaded:.1f} s after the reload")
    assert ended - reloaded > 2 * drain, "too quick to show anything"
    *_, usage, done = filter(None, host.machine.output("cat", "/root/stream").splitlines())
    assert done == "data: [DONE]"
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == tokens * choices
