"""Clients that stop reading their answers: no engine is replaced for them, and the kernel disconnects them."""

import re
import time
from collections.abc import Iterator

import pytest
from waiting import until

from .conftest import SUMMARY, TINY_MODEL, Host

PORT = 11640
UNIT = "citadel-llm@unread"
SETTINGS: dict[str, str | float] = {"MODEL": TINY_MODEL, "PORT": PORT, "KV_CACHE_GB": 0.25, "HANG_TIMEOUT_SEC": 15}
CLIENTS, ANSWERS, TOKENS = 2, 32, 1900
STALL = f"""
import json, socket, time
body = {{"prompt": "x", "n": {ANSWERS}, "max_tokens": {TOKENS}, "logprobs": 5, "ignore_eos": True, "stream": True}}
text = json.dumps(body)
clients = []
for _ in range({CLIENTS}):
    client = socket.create_connection(("127.0.0.1", {PORT}))
    client.sendall(
        f"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\n"
        f"Content-Length: {{len(text)}}\\r\\n\\r\\n{{text}}".encode()
    )
    clients.append(client)
time.sleep(600)
"""
"""Clients that ask for long streams and read nothing."""
ASK = (
    "curl -s -o /dev/null --max-time 20 -w '%{http_code}' -H 'Content-Type: application/json' "
    f'-d \'{{"prompt": "x", "max_tokens": 1}}\' http://127.0.0.1:{PORT}/v1/completions'
)


class Stalled:
    """An instance with clients that have stopped reading."""

    def __init__(self, host: Host) -> None:
        self.host, self.machine = host, host.machine

    def begin(self, **settings: str | float) -> None:
        """Start the instance, and then the clients."""
        self.host.settings("unread", **{**SETTINGS, **settings})
        self.machine.run("systemctl", "restart", UNIT)
        self.machine.run("systemd-run", "--quiet", "--collect", "--unit=stalled", "/usr/bin/python3", "-c", STALL)
        until(lambda: self.metric("vllm:generation_tokens_total") > ANSWERS, "the engine works for them")

    def end(self) -> None:
        self.machine.run("systemctl", "stop", "stalled", check=False)

    def metric(self, name: str) -> float:
        """The value of one of vLLM's metrics."""
        text = self.machine.output("curl", "-s", "--max-time", "20", f"http://127.0.0.1:{PORT}/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{"))

    def unsent(self) -> list[int]:
        """Bytes that the kernel holds for each client that the server is connected to and that does not read."""
        lines = self.machine.output("ss", "-Htn", f"sport = :{PORT}").splitlines()
        return [int(line.split()[2]) for line in lines if int(line.split()[2])]

    def served(self) -> str:
        """The status of another client's request for a token."""
        return self.machine.run("sh", "-c", ASK, check=False).stdout

    def engine(self) -> str:
        tree = self.machine.output("systemctl", "status", "--lines=0", UNIT)
        return " ".join(re.findall(r"(\d+) VLLM::EngineCore", tree))

    def counters(self) -> list[str]:
        """What the monitor counts of the instance."""
        text = self.machine.output("curl", "-s", "--max-time", "20", "http://127.0.0.1:9090/metrics")
        pattern = r"citadel_llm_service_(restarts|failures)_total\{.*unread.*"
        return [line for line in text.splitlines() if re.match(pattern, line)]


@pytest.fixture
def stalled(monitor: Host) -> Iterator[Stalled]:
    stalled = Stalled(monitor)
    yield stalled
    stalled.end()


def test_clients_that_read_nothing_are_no_hang(stalled: Stalled) -> None:
    stalled.begin()
    engine, counters = stalled.engine(), stalled.counters()
    assert engine and counters
    codes = set()

    def finished() -> bool:
        codes.add(stalled.served())
        return stalled.metric("vllm:num_requests_running") == 0

    worked = until(finished, "the engine has finished")
    # Both limits of a hang pass: 10 s without CPU time, and HANG_TIMEOUT_SEC. Nobody else asks: that would be progress.
    time.sleep(SETTINGS["HANG_TIMEOUT_SEC"] + 10)  # type: ignore[operator]
    unsent = stalled.unsent()
    assert len(unsent) == CLIENTS, "the clients are still connected"
    assert (stalled.engine(), stalled.counters()) == (engine, counters)
    codes.add(stalled.served())
    assert codes == {"200"}, "another client is served meanwhile"
    SUMMARY.append(
        f"{CLIENTS} clients that read nothing: the engine worked {worked:.0f} s for them; {unsent} bytes unsent; "
        f"the same engine {SETTINGS['HANG_TIMEOUT_SEC']} + 10 s later"
    )


def test_client_that_reads_nothing_is_disconnected_and_its_request_aborted(stalled: Stalled) -> None:
    stalled.begin(CLIENT_TIMEOUT_SEC=5)
    engine, counters = stalled.engine(), stalled.counters()
    until(lambda: len(stalled.unsent()) == CLIENTS, "the clients do not read")
    took = until(lambda: not stalled.unsent(), "they are disconnected")
    until(lambda: stalled.metric("vllm:num_requests_running") == 0, "their requests have ended")
    tokens = stalled.metric("vllm:generation_tokens_total")
    assert tokens < CLIENTS * ANSWERS * TOKENS, "they have not been computed to their end"
    assert stalled.served() == "200"
    assert (stalled.engine(), stalled.counters()) == (engine, counters)
    SUMMARY.append(
        f"CLIENT_TIMEOUT_SEC=5: disconnected {took:.1f} s after they had stopped to read; "
        f"{tokens:.0f} of {CLIENTS * ANSWERS * TOKENS} tokens computed"
    )
