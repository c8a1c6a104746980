import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from base_tree import CACHE
from fakes import Fakes
from machine import Machine
from needs import PACKAGE
from versions import Versions

TINY_MODEL = "/usr/share/citadel-llm/models/test"
CHAT = """
import sys
from openai import OpenAI
client = OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="none")
answer = client.chat.completions.create(
    model=sys.argv[2], messages=[{"role": "user", "content": sys.argv[3]}], temperature=0, max_tokens=40)
print(answer.choices[0].message.content)
"""


def install(machine: Machine) -> None:
    if not machine.inside(f"/root/{PACKAGE.name}").exists():
        machine.copy_in(PACKAGE, f"/root/{PACKAGE.name}")
    machine.run("apt-get", "-qy", "install", f"/root/{PACKAGE.name}")


SUMMARY: list[str] = []
"""Lines for the end of the run: measurements, which passing tests do not show."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in SUMMARY:
        terminalreporter.write_line(line)


class Host:
    """A machine with the package installed, as its administrator uses it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.made: set[str] = set()

    def settings(self, instance: str, **values: object) -> None:
        """Write an instance's settings file and reload systemd, as the README says."""
        self.made.add(instance)
        lines = [f"{key}={value}\n" for key, value in values.items()]
        self.machine.write(f"/etc/default/citadel-llm-{instance}", "".join(lines))
        self.machine.run("systemctl", "daemon-reload")

    def forget(self, instance: str) -> None:
        """Stop an instance and delete its settings."""
        self.machine.run("systemctl", "stop", f"citadel-llm@{instance}")
        self.machine.run("systemctl", "reset-failed", f"citadel-llm@{instance}", check=False)
        self.machine.inside(f"/etc/default/citadel-llm-{instance}").unlink(missing_ok=True)
        self.machine.run("systemctl", "daemon-reload")

    def python(self, code: str, *arguments: str, timeout: float = 120) -> str:
        """Run code with the package's own environment, which has the openai client."""
        return self.machine.output("/opt/citadel/env/bin/python", "-I", "-c", code, *arguments, timeout=timeout)

    def server(self, instance: str) -> str:
        """PIDs of an instance's API servers, separated by spaces: two while one replaces the other."""
        tree = self.machine.output("systemctl", "status", "--lines=0", f"citadel-llm@{instance}")
        return " ".join(re.findall(r"(\d+) VLLM::APIServer", tree))

    def journal(self, instance: str) -> str:
        self.machine.run("journalctl", "--sync")
        return self.machine.output("journalctl", "-u", f"citadel-llm@{instance}", "-o", "cat")


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    with Machine.boot("test") as machine:
        install(machine)
        yield machine


@pytest.fixture(scope="session")
def versions() -> Iterator[Versions]:
    """An old and a new version of the package."""
    (CACHE / "machines").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="versions-", dir=CACHE / "machines") as folder:
        yield Versions.make(PACKAGE, Path(folder))


@pytest.fixture
def host(machine: Machine) -> Iterator[Host]:
    """The shared machine; instances that a test creates are removed after it."""
    host = Host(machine)
    yield host
    for instance in sorted(host.made):
        host.forget(instance)


@pytest.fixture
def monitor(host: Host) -> Host:
    """A host whose monitor runs."""
    if host.machine.show("citadel-llm-monitor", "ActiveState")["ActiveState"] != "active":
        host.machine.run("systemctl", "start", "citadel-llm-monitor")
    return host


@pytest.fixture
def fakes(monitor: Host) -> Iterator[Fakes]:
    fakes = Fakes(monitor.machine)
    yield fakes
    fakes.forget()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the journal of a failed test and say how to open it."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and machine is not None:
        report.sections.append(("journal of the machine", machine.keep_journal()))
