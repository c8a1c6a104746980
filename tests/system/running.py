"""Runs code inside the processes of a serving model, and outside its sandbox, and judges what attacks have obtained."""

import json
from pathlib import Path
from typing import Any

from machine import Machine
from waiting import until

from .conftest import SUMMARY

PACKAGES = "/opt/citadel/env/lib/python3.11/site-packages"
RUNNER = """
import json, os
from vllm.v1.sample.logits_processor import LogitsProcessor

def run(directory):
    task, answer = (os.path.join(directory, name) for name in ("task", "answer"))
    if not os.path.exists(task):
        return
    with open(task) as file:
        code = file.read()
    os.unlink(task)
    with open(answer + ".part", "w") as file:
        json.dump(eval(code, {"attacks": __import__("attacks")}), file)
    os.rename(answer + ".part", answer)

class Running(LogitsProcessor):
    "In the engine, whose HOME is its own directory."
    def __init__(self, vllm_config, device, is_pin_memory):
        self.home = os.environ["HOME"]

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        run(self.home)
        return logits

class Middleware:
    "In the API server."
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            run(os.environ["HOME"])
        await self.app(scope, receive, send)
"""
FLAGS = "--logits-processors runner:Running"
"""Makes the engine run code."""
FLAGS_OF_SERVER = "--middleware runner.Middleware"
"""Makes the API server run code."""
OUTSIDE = """
import json, sys
sys.path.insert(0, "/opt/citadel/env/lib/python3.11/site-packages")
import attacks
print(json.dumps(eval(sys.argv[1])))
"""
Outcomes = dict[str, list[str]]


def add_modules(machine: Machine) -> None:
    """Add the modules to the environment of the package."""
    source = Path(__file__).parent.parent / "attacks.py"
    machine.write(f"{PACKAGES}/runner.py", RUNNER)
    machine.write(f"{PACKAGES}/attacks.py", source.read_text(encoding="utf-8"))


def remove_modules(machine: Machine) -> None:
    """Remove them again."""
    for module in ("runner", "attacks"):
        machine.inside(f"{PACKAGES}/{module}.py").unlink(missing_ok=True)


def inside(machine: Machine, name: str, url: str, key: str, expression: str, *, server: bool = False) -> Any:
    """Evaluate a Python expression in the engine of an instance, or in its API server."""
    place = f"/var/cache/citadel-llm/{name}{'' if server else '/engine'}"
    machine.write(f"{place}/task", expression)
    ask = ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"]
    body = json.dumps({"prompt": "x", "max_tokens": 1, "ignore_eos": True})
    machine.run("curl", "-sk", "--max-time", "60", *ask, "-d", body, f"{url}/v1/completions")
    answer = machine.inside(f"{place}/answer")
    until(answer.exists, f"{name} has answered")
    found = json.loads(answer.read_text())
    answer.unlink()
    return found


def outside(machine: Machine, expression: str, user: str = "agent0") -> Any:
    """Evaluate a Python expression in a process of `user` outside the sandbox."""
    group = "agent0" if user.isdecimal() else user
    words = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "/usr/bin/python3", "-c", OUTSIDE]
    return json.loads(machine.output(*words, expression))


def judge(what: str, outcomes: Outcomes, controls: dict[str, Outcomes], allowed: dict[str, str]) -> list[str]:
    """Print and keep a table; return its lines with an unexpected outcome or without a successful control."""
    lines = [f"| {what} | outcome | the same attack succeeds |", "|---|---|---|"]
    wrong = []
    for attack, (outcome, detail) in outcomes.items():
        shown = [who for who, tried in controls.items() if tried.get(attack, ["none"])[0] == "got"]
        expected = "got" if attack in allowed else "refused"
        said = f"refused: {detail}" if outcome == "refused" else f"**possible**: {allowed.get(attack, 'unexpected')}"
        lines.append(f"| {attack} | {said} | {', '.join(shown) or 'nowhere'} |")
        if outcome != expected or not shown:
            wrong.append(lines[-1])
    SUMMARY.extend(lines)
    print("\n".join(lines))
    return wrong
