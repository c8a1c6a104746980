"""A reload under load: no request fails or is cut."""

import json

import pytest
from machine import PROJECT

from .conftest import TINY_MODEL, Host

PORT = 11580
RELOADS = 10
CLIENT = PROJECT / "tests/steady_client.py"
RELOAD = f"""
rm -f /root/enough
ask="/opt/citadel/env/bin/python -I /root/client.py http://127.0.0.1:{PORT}/v1/completions busy"
$ask /root/enough >/root/asked & sleep 2
for number in $(seq {RELOADS}); do
    sed -i "s/^MAX_MODEL_LEN=.*/MAX_MODEL_LEN=$((1000 + number))/" /etc/default/citadel-llm-busy
    systemctl reload citadel-llm@busy || {{ touch /root/enough; exit 1; }}
    sleep 1
done
touch /root/enough
wait
"""


@pytest.mark.parametrize(("method", "words"), [("auto", "Ready: busy"), ("restart", "new requests wait")])
def test_no_request_fails_through_ten_reloads(host: Host, method: str, words: str) -> None:
    settings = {"MODEL": TINY_MODEL, "PORT": PORT, "KV_CACHE_GB": 0.25, "MAX_MODEL_LEN": 1000}
    host.settings("busy", **settings, RELOAD_METHOD=method)
    machine = host.machine
    machine.copy_in(CLIENT, "/root/client.py")
    machine.run("systemctl", "start", "citadel-llm@busy")
    before = machine.show("citadel-llm@busy", "MainPID")
    machine.run("sh", "-c", RELOAD, timeout=300)
    asked = json.loads(machine.output("cat", "/root/asked"))
    print(f"{RELOADS} reloads, {method}: {asked['counts']} answered, {len(asked['failures'])} failed")
    assert not asked["failures"], asked["failures"][:5]
    assert min(asked["counts"].values()) > RELOADS * 10
    assert machine.show("citadel-llm@busy", "MainPID") == before
    assert words in host.journal("busy")
    models = machine.output("curl", "-s", f"http://127.0.0.1:{PORT}/v1/models")
    assert json.loads(models)["data"][0]["max_model_len"] == 1000 + RELOADS
