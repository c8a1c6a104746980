"""The two sides: a model served by citadel-llm@, and the same model served by a handwritten unit.

Both run the same vLLM from the same environment, as the same user, with the same flags and limits. The handwritten unit
is as good as it can be without code: `Restart=always` without a pause.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from machine import Machine

CLIENTS = Path(__file__).with_name("clients")
ENGINE = "^VLLM::EngineCore"
"""Title that vLLM gives the process that holds the model."""
PLAIN_OFFSET = 1000
"""Difference between the plain side's port and ours."""
FLAGS = """
import json, sys
from hxp_enterprise_llm.engine import launch
from hxp_enterprise_llm.engine.model_directory import find_model
from hxp_enterprise_llm.settings import config
settings, _ = config.load(sys.argv[1])
words = launch.arguments(settings, find_model(settings))
for flag in ("--model", "--port"):
    where = words.index(flag)
    del words[where:where + 2]
print(json.dumps([find_model(settings), *words]))
"""
PLAIN_UNIT = """\
[Service]
User=agent0
Group=agent0
Environment=VLLM_TARGET_DEVICE=cpu HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 HOME=/var/cache/plain
CacheDirectory=plain
ExecStart=/opt/citadel/env/bin/python -m vllm.entrypoints.cli.main serve {words}
Restart=always
RestartSec=0
LimitNOFILE=65536
MemoryMax={memory}
CPUQuota={quota}%
"""


@dataclass(frozen=True)
class Side:
    """A model that one of the two sides serves; times in seconds."""

    machine: Machine
    name: str
    unit: str
    model: str
    port: int

    def first_token(self) -> float:
        """Wait until a completion succeeds; return the time on this host's monotonic clock."""
        said = self.machine.output(
            "/usr/bin/python3", "-I", "/root/bench/first_token.py", f"http://127.0.0.1:{self.port}", self.model
        )
        return float(said)

    def until_served(self, *command: str) -> float:
        """Run a command; return the time until a completion succeeds."""
        begin = time.monotonic()
        self.machine.run(*command)
        return self.first_token() - begin

    def start(self) -> tuple[float, float]:
        """Start the unit; return the time of `systemctl start` and the time until the first token."""
        begin = time.monotonic()
        self.machine.run("systemctl", "start", self.unit)
        return time.monotonic() - begin, self.first_token() - begin

    def restart(self) -> float:
        """Restart the unit; return the time until the first token."""
        return self.until_served("systemctl", "restart", self.unit)

    def kill_engine(self) -> float:
        """Kill the engine's process; return the time until the next token."""
        pids = self.machine.output("pgrep", "-f", ENGINE).split()
        (pid,) = set(pids) & set(self.processes())
        return self.until_served("kill", "-KILL", pid)

    def kill_main(self) -> float:
        """Kill the unit's main process; return the time until the next token."""
        return self.until_served("kill", "-KILL", self.machine.show(self.unit, "MainPID")["MainPID"])

    def stop(self) -> None:
        """Stop the unit."""
        self.machine.run("systemctl", "stop", self.unit)

    def processes(self) -> list[str]:
        """The pids of all processes of the unit."""
        group = self.machine.show(self.unit, "ControlGroup")["ControlGroup"]
        script = f"cat /sys/fs/cgroup/systemd{group}/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup{group}/cgroup.procs"
        return self.machine.output("sh", "-c", script).split()

    def memory(self) -> float:
        """Memory of the unit's processes, with shared pages counted once (PSS, MiB)."""
        files = [f"/proc/{pid}/smaps_rollup" for pid in self.processes()]
        lines = self.machine.output("grep", "-h", "^Pss:", *files).splitlines()
        return sum(int(line.split()[1]) for line in lines) / 1024


def sides(machine: Machine, name: str, **settings: str | float) -> tuple[Side, Side]:
    """Write an instance's settings and the matching plain unit; return both sides, plain first."""
    lines = "".join(f"{key}={value}\n" for key, value in settings.items())
    machine.write(f"/etc/default/citadel-llm-{name}", lines)
    for file in CLIENTS.iterdir():
        if file.is_file():
            machine.write(f"/root/bench/{file.name}", file.read_text(encoding="utf-8"))
    model, *flags = json.loads(machine.output("/opt/citadel/env/bin/python", "-I", "-c", FLAGS, name))
    port = int(settings["PORT"])
    words = [model, *flags, "--port", str(port + PLAIN_OFFSET)]
    unit = PLAIN_UNIT.format(
        words=" ".join(words),
        memory=f"{settings.get('MEMORY_LIMIT_GB', 4)}G",
        quota=round(float(settings.get("CPU_CORES", 2)) * 100),
    )
    machine.write(f"/etc/systemd/system/plain-{name}.service", unit)
    machine.run("systemctl", "daemon-reload")
    return (
        Side(machine, "plain", f"plain-{name}.service", name, port + PLAIN_OFFSET),
        Side(machine, "citadel-llm", f"citadel-llm@{name}.service", name, port),
    )
