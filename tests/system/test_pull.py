"""citadel-llm pull against a local server that speaks the hub's HTTP API."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import TINY_MODEL, Host

PORT = 11990
ENDPOINT = f"http://127.0.0.1:{PORT}"
TARGET = "/var/lib/citadel-llm/models/org/tiny"
BIG, CUT_AFTER = 60_000_000, 35_000_000  # bytes; huggingface_hub writes in chunks of 10 MB
FAKE_HUB = Path(__file__).resolve().parent.parent / "fake_hub.py"


@pytest.fixture
def hub(host: Host) -> Iterator[Host]:
    """A hub whose first answer for each weight file breaks off, and an instance whose model is there."""
    machine = host.machine
    machine.copy_in(FAKE_HUB, "/root/fake_hub.py")
    machine.run(
        "sh",
        "-c",
        f"rm -rf /root/hub; cp -r {TINY_MODEL} /root/hub; cp /root/hub/config.json /root/hub/pytorch_model.bin",
    )
    machine.inside("/root/hub/big.safetensors").write_bytes(os.urandom(BIG))
    serve = ["python3", "/root/fake_hub.py", str(PORT), "/root/hub", str(CUT_AFTER)]
    machine.run("systemd-run", "--quiet", "--unit=hub", "--property=StandardOutput=file:/root/hub.log", *serve)
    machine.run("sh", "-c", f"until ss -ltn | grep -q :{PORT}; do sleep 0.1; done", timeout=10)
    host.settings("pulled", MODEL="org/tiny", PORT=11560, KV_CACHE_GB=0.25, HF_ENDPOINT=ENDPOINT)
    yield host
    machine.run("systemctl", "stop", "hub", check=False)
    machine.run("rm", "-rf", "/var/lib/citadel-llm/models/org")


def test_a_model_is_fetched_resumed_verified_and_served_by_no_root(hub: Host) -> None:
    machine = hub.machine
    done = machine.run("citadel-llm", "pull", "pulled")
    assert done.stdout == f"pulled: {TARGET}\n"
    assert "100%" in done.stderr
    requests = re.findall(r"GET big.safetensors from (\d+)", machine.output("cat", "/root/hub.log"))
    assert len(requests) == 2 and int(requests[1]) > 0, "the second request did not go on where the first broke off"
    assert machine.output("stat", "-c", "%U %a", TARGET, f"{TARGET}/big.safetensors").split() == [
        "agent0",
        "755",
        "agent0",
        "644",
    ]
    assert machine.output("ls", "-A", "/var/lib/citadel-llm/models/org") == "tiny"
    # Weights in a second format are left where they are.
    assert not machine.inside(f"{TARGET}/pytorch_model.bin").exists()
    assert "as on the hub" in machine.output("citadel-llm", "pull", "--verify", "pulled")
    machine.inside(f"{TARGET}/config.json").write_text("{}")
    done = machine.run("citadel-llm", "pull", "--verify", "pulled", check=False)
    assert (done.returncode, "missing or damaged: config.json" in done.stderr) == (1, True)


def test_what_cannot_be_fetched_is_said_and_nothing_appears(hub: Host) -> None:
    machine = hub.machine
    hub.settings("missing", MODEL="org/none", PORT=11561, HF_ENDPOINT=ENDPOINT)
    done = machine.run("citadel-llm", "pull", "missing", check=False)
    assert (done.returncode, "the hub has no such model" in done.stderr) == (1, True)
    machine.run("systemctl", "stop", "hub")
    done = machine.run("citadel-llm", "pull", "pulled", check=False)
    assert (done.returncode, "the same command goes on from there" in done.stderr) == (1, True), done.stderr
    assert not machine.inside(TARGET).exists()
    done = machine.run("citadel-llm", "pull", "test", check=False)
    assert (done.returncode, "there is nothing to fetch" in done.stderr) == (1, True)
    assert machine.run("citadel-llm", "pull", check=False).returncode == 2
    # And a start does not try.
    assert machine.run("systemctl", "start", "citadel-llm@pulled", check=False).returncode != 0
    assert "citadel-llm pull pulled" in machine.show("citadel-llm@pulled", "StatusText")["StatusText"]
