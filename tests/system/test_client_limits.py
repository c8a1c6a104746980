"""Clients can neither fill a server's memory nor its connections; with the real vLLM."""

import json
from collections.abc import Iterator

import pytest

from .conftest import SUMMARY, TINY_MODEL, Host

PORT, KEYS = 11591, "/etc/citadel-llm/guarded.keys"
CLIENT = """
import json, socket, sys, time
PORT, KEY, WHAT = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ENDLESS = {
    "endless fields": (b"GET / HTTP/1.1\\r\\n", b"a:b\\r\\n" * 10_000),
    "an endless field": (b"GET / HTTP/1.1\\r\\nX: ", b"x" * 50_000),
    "an endless path": (b"GET /", b"x" * 50_000),
    "a body of 5 GB": (b"POST /v1/completions HTTP/1.1\\r\\nContent-Length: 5000000000\\r\\n\\r\\n", b"[" * 50_000),
    "a body without end": (
        b"POST /v1/completions HTTP/1.1\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n",
        b"c350\\r\\n" + b"[" * 50_000 + b"\\r\\n",
    ),
}

def connect():
    return socket.create_connection(("127.0.0.1", PORT), timeout=60)

def endless(head, piece, fields=b""):
    begin, sent = time.monotonic(), 0
    with connect() as client:
        try:
            client.sendall(head.replace(b" HTTP/1.1\\r\\n", b" HTTP/1.1\\r\\n" + fields))
            while time.monotonic() - begin < 60:
                client.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        try:
            answer = client.recv(100)
        except OSError:
            answer = b""
    return [answer.split(b"\\r\\n")[0].decode(), sent, time.monotonic() - begin]

def ask(path, body=None, key=""):
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\\r\\nConnection: close\\r\\n"
    head += "Content-Type: application/json\\r\\n"
    head += f"Authorization: Bearer {key}\\r\\n" if key else ""
    text = json.dumps(body) if body else ""
    begin = time.monotonic()
    with connect() as client:
        client.sendall(f"{head}Content-Length: {len(text)}\\r\\n\\r\\n{text}".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return [answer.split(b"\\r\\n")[0].decode(), 0, time.monotonic() - begin]

if WHAT == "endless":
    said = {name: endless(*said) for name, said in ENDLESS.items()}
    key = f"Authorization: Bearer {KEY}\\r\\n".encode()
    said |= {f"{name}, with a key": endless(*said, key) for name, said in ENDLESS.items() if "body" in name}
else:
    said, held = {}, []
    for number in range(1050):
        held.append(connect())
        held[-1].sendall(b"GET /v1/models HTTP/1.1\\r\\nX: ")
        if number % 50 == 0:
            completion = {"model": "guarded", "prompt": "a", "max_tokens": 2}
            said[f"health beside {number}"] = ask("/health")
            said[f"completion beside {number}"] = ask("/v1/completions", completion, KEY)
    begin = time.monotonic()
    for one in held:
        try:
            one.recv(1)
        except OSError:
            pass
    said["the last half request"] = ["closed", 0, time.monotonic() - begin]
print(json.dumps(said))
"""

TEXTS = """
import json, sys, httpx

def ask(text):
    said = {
        "/tokenize": {"prompt": text},
        "/v1/completions": {"prompt": text, "max_tokens": 1, "truncate_prompt_tokens": 1},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 1,
            "chat_template_kwargs": {"tokenize": True},
        },
    }
    server = f"http://127.0.0.1:{sys.argv[1]}"
    return {path: httpx.post(server + path, json=body, timeout=120).status_code for path, body in said.items()}

print(json.dumps(ask("The quick brown fox jumps over the lazy dog. " * int(sys.argv[2]))))
"""
"""Long texts on paths where vLLM itself does not bound them."""


@pytest.fixture
def key(host: Host) -> Iterator[str]:
    """The key of `guarded`, which allows 100 connections and bodies of 1 MB."""
    host.machine.inside(KEYS).unlink(missing_ok=True)
    host.settings(
        "guarded", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25, MAX_CONNECTIONS=100, MAX_REQUEST_MB=1,
        API_KEY_FILE=KEYS,
    )  # fmt: skip
    key = host.machine.output("citadel-llm", "key", "add", "guarded", "--name", "a")
    host.machine.run("systemctl", "daemon-reload")
    host.machine.run("systemctl", "start", "citadel-llm@guarded")
    yield key
    host.machine.inside(KEYS).unlink()


def outcomes(host: Host, key: str, what: str) -> dict[str, tuple[str, int, float]]:
    """What a client without a key got: an answer's first line or "", the bytes that it sent, and the seconds."""
    said: dict[str, tuple[str, int, float]] = json.loads(host.python(CLIENT, str(PORT), key, what, timeout=300))
    return said


def use(host: Host, pid: str) -> tuple[float, int]:
    """Resident memory of a process (MB), and the number of its descriptors."""
    resident = host.machine.output("ps", "-o", "rss=", "-p", pid)
    return int(resident) / 1000, len(host.machine.output("ls", f"/proc/{pid}/fd").split())


def test_clients_without_a_key_cost_no_more_than_connections(host: Host, key: str) -> None:
    server = host.server("guarded")
    before, descriptors = use(host, server)
    said = outcomes(host, key, "endless")
    for name, (answer, sent, seconds) in said.items():
        SUMMARY.append(f"{name}: {answer or 'closed'}, {sent / 1e6:.1f} MB sent in {seconds:.1f} s")
    expected = {"fields": "431", "field": "431", "path": "431"}
    for name, (answer, _, seconds) in said.items():
        status = expected.get(name.split()[-1], "413" if "with a key" in name else "401")
        assert status in answer, f"{name}: {answer}"
        assert seconds < 60, name
    grown = use(host, server)[0] - before
    SUMMARY.append(f"memory of the API server afterwards: {grown:+.1f} MB")
    assert grown < 32, "uvicorn without limits grew by 570 MB in 4 s"

    said = outcomes(host, key, "connections")
    late = said.pop("the last half request")[2]
    assert {answer for answer, _, _ in said.values()} == {"HTTP/1.1 200 OK"}, said
    for what in ("health", "completion"):
        took = [seconds for name, (_, _, seconds) in said.items() if name.startswith(what)]
        SUMMARY.append(
            f"{what}: {1000 * took[0]:.0f} ms; beside up to 1050 half requests at most {1000 * max(took):.0f} ms"
        )
    SUMMARY.append(f"half requests that were not replaced were closed after {late:.1f} s")
    assert late < 20, "a head has 10 s"
    assert host.server("guarded") == server and use(host, server)[1] <= descriptors + 4


def memory(host: Host, pid: str, field: str = "VmHWM") -> float:
    """A field of a process's status (MB); VmHWM is the most memory that it has had."""
    return int(host.machine.output("grep", field, f"/proc/{pid}/status").split()[1]) * 1024 / 1e6


def test_text_that_the_model_could_not_take_is_not_tokenized(host: Host) -> None:
    host.settings("texts", MODEL=TINY_MODEL, PORT=PORT + 1, KV_CACHE_GB=0.25)
    host.machine.run("systemctl", "start", "citadel-llm@texts")
    server = host.server("texts")

    def asked(sentences: int) -> tuple[dict[str, int], float]:
        """The statuses of the answers, and the growth of the server meanwhile (MB)."""
        before = memory(host, server, "VmRSS")
        # Let VmHWM begin from now (proc_pid_clear_refs(5)).
        host.machine.run("sh", "-c", f"echo 5 > /proc/{server}/clear_refs")
        statuses: dict[str, int] = json.loads(host.python(TEXTS, str(PORT + 1), str(sentences), timeout=400))
        return statuses, memory(host, server) - before

    # The first requests import modules.
    short, _ = asked(1)
    assert short["/tokenize"] == short["/v1/completions"] == 200
    long, grown = asked(45_000)
    SUMMARY.append(f"three texts of 2 MB: {long}; memory of the API server {grown:+.0f} MB")
    assert set(long.values()) == {400}
    assert grown < 150, "tokenizing one of them takes 500 MB"
    assert host.server("texts") == server
    assert asked(10_000)[0]["/tokenize"] == 200, "a text of 450 kB is tokenized"
