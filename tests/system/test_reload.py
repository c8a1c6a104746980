"""A reload under load: no request fails or is cut."""

import json

import pytest

from .conftest import TINY_MODEL, Host

PORT = 11580
RELOADS = 10
CLIENT = f"""
import asyncio, json, pathlib, time, httpx
URL = "http://127.0.0.1:{PORT}/v1/completions"
BODY = {{"model": "busy", "prompt": "License", "max_tokens": 40, "ignore_eos": True}}
counts, failures = {{"plain": 0, "streamed": 0}}, []

async def ask(client, kind):
    try:
        if kind == "plain":
            answer = await client.post(URL, json=BODY)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 40, answer.text
        else:
            async with client.stream("POST", URL, json=BODY | {{"stream": True}}) as answer:
                lines = [line async for line in answer.aiter_lines() if line]
            assert answer.status_code == 200 and lines[-1] == "data: [DONE]" and len(lines) > 5, lines[-3:]
        counts[kind] += 1
    except Exception as error:
        failures.append(f"{{time.strftime('%T')}} {{kind}}: {{type(error).__name__}} {{error}}")

async def main():
    async with httpx.AsyncClient(timeout=60) as client:
        tasks, end = [], pathlib.Path("/root/enough")
        while not end.exists():
            tasks.append(asyncio.create_task(ask(client, "plain" if len(tasks) % 2 else "streamed")))
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
    print(json.dumps({{"counts": counts, "failures": failures}}))

asyncio.run(main())
"""
RELOAD = f"""
rm -f /root/enough
/opt/citadel/env/bin/python -I /root/client.py >/root/asked & sleep 2
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
    machine.write("/root/client.py", CLIENT)
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
