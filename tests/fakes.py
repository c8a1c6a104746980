"""Fake instances for the monitor, which answer as a test configures them."""

from machine import Machine

FAKE = """
import json, os, pathlib, signal, socket, sys, time

mode, port = pathlib.Path(f"/usr/local/lib/fake/{sys.argv[1]}").read_text().split()
server = socket.create_server(("127.0.0.1", int(port)), backlog=64)
address = {"scheme": "http", "host": "127.0.0.1", "port": int(port)}
run = {"phase": "ready", "invocation": os.environ["INVOCATION_ID"]}
state = {**run, "address": address, "startup_seconds": 1.5, "failures": {}, "last_failure": None}

def tell():
    draft = pathlib.Path(os.environ["RUNTIME_DIRECTORY"], "state.new")
    draft.write_text(json.dumps(state))
    draft.chmod(0o644)
    draft.rename(draft.with_name("state.json"))

def mended(*_):
    state["failures"]["engine-died"] = state["failures"].get("engine-died", 0) + 1
    state["last_failure"] = {"kind": "engine-died", "reason": "the fake engine ended", "at": time.time()}
    tell()

def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])

def greedy(*_):
    if not os.fork():
        # Another process of the service, as an engine is: it outlives the main process for a moment.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path("/proc/self/oom_score_adj").write_text("0")
        time.sleep(5)
        os._exit(0)
    pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    held = [bytearray(2**20) for _ in range(2000)]

signal.signal(signal.SIGUSR2, greedy)
signal.signal(signal.SIGUSR1, mended)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
tell()
notify("READY=1\\nSTATUS=Ready")
answers = {
    "good": b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n",
    "telling": b"HTTP/1.1 200 OK\\r\\nX-Key: secret-key-of-the-test\\r\\n\\r\\nsecret-key-of-the-test",
    "error": b"HTTP/1.1 500 No\\r\\nContent-Length: 0\\r\\n\\r\\n",
    "garbage": b"\\xff\\xfe" * 4000 + b"\\r\\n\\r\\n",
    "endless": b"HTTP/1.1 200 OK\\r\\nX: " + b"x" * 2_000_000,
}
held = []
while True:
    connection, _ = server.accept()
    if mode == "never":
        held.append(connection)
        continue
    try:
        connection.recv(4096)
        connection.sendall(answers[mode])
    except OSError:
        pass
    connection.close()
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart=/opt/citadel/env/bin/python -I /usr/local/lib/fake/engine.py %i
ExecReload=
WatchdogSec=0
"""


class Fakes:
    """Instances of the package's own unit that run a configurable fake program instead of vLLM."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.next_port = 12000
        self.names: list[str] = []
        machine.write("/usr/local/lib/fake/engine.py", FAKE)

    def make(self, name: str, mode: str = "good", **settings: str | float) -> str:
        """Write the settings and the drop-in of a fake instance; return its unit."""
        self.next_port += 1
        self.machine.write(f"/usr/local/lib/fake/{name}", f"{mode} {self.next_port}")
        self.machine.write(f"/run/systemd/system/citadel-llm@{name}.service.d/90-fake.conf", DROP_IN)
        self.names.append(name)
        values = {"MODEL": "/usr/share/citadel-llm/models/test", "PORT": self.next_port, **settings}
        lines = "".join(f"{key}={value}\n" for key, value in values.items())
        self.machine.write(f"/etc/default/citadel-llm-{name}", lines)
        return f"citadel-llm@{name}"

    def forget(self) -> None:
        """Stop and delete all fake instances."""
        units = [f"citadel-llm@{name}" for name in self.names]
        self.machine.run("systemctl", "stop", *units)
        self.machine.run("systemctl", "reset-failed", *units, check=False)
        for name, unit in zip(self.names, units, strict=True):
            self.machine.run("rm", "-r", f"/run/systemd/system/{unit}.service.d", f"/etc/default/citadel-llm-{name}")
        self.machine.run("systemctl", "daemon-reload")

    def start(self, *names: str) -> None:
        """Reload systemd and start fake instances."""
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "start", *(f"citadel-llm@{name}" for name in names))
