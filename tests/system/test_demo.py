"""The README's first command: `./build.sh demo`, to its end and interrupted."""

import os
import re
import signal
import subprocess
from pathlib import Path

from base_tree import CACHE, PROJECT
from machine import SHUTDOWN_SEC
from traces import traces

DEMO = [str(PROJECT / "build.sh"), "demo"]


def demo_machine(pid: int) -> str:
    """The name of a demo's machine: build.sh execs the program that boots the machine, so the PID is the same."""
    return f"citadel-demo-{pid}"


def test_the_demo_answers_and_cleans_up_after_itself() -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        shown, _ = process.communicate(timeout=600)
    print(shown)
    assert process.returncode == 0
    assert len(re.findall(r"active after [\d.]+ s: Ready: (?:test|smollm2) on ", shown)) == 2
    assert "MemoryMax=4294967296" in shown
    assert re.search(r"capital of France\?.*\n.*Answer: .*Paris", shown)
    assert len(re.findall("Answer: +\\S", shown)) == 2
    assert "done" in shown.splitlines()[-1]
    assert not traces(demo_machine(process.pid))


def test_an_interrupted_demo_cleans_up_after_itself() -> None:
    """Ctrl-C while apt runs in the machine; a terminal sends it to every process of the demo."""
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "# apt install" in line:
                break
        name = demo_machine(process.pid)
        assert Path(CACHE, "machines", name).exists()
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=2 * SHUTDOWN_SEC)
    print(rest)
    assert process.returncode == 1
    assert "demo: interrupted" in rest
    assert "Traceback" not in rest
    assert not traces(name)
