"""Shared by the tests of the package's life cycle: instances in every state, and checks of all that must hold."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import certificates as made
from machine import Machine
from versions import CHANGED, COMMENT

from .conftest import SUMMARY, TINY_MODEL

PORTS = {"zulu": 11581, "alpha": 11582, "bravo": 11583, "idle": 11584, "masked": 11585}
"""Instances that can serve. alpha requires zulu and bravo starts after zulu, against the alphabetical order."""

BROKEN = "broken"
MONITOR = "monitor"
MONITOR_PORTS = {8000, 9090}
COLUMNS = {
    "zulu": "enabled, runs",
    "alpha": "runs, not enabled, requires the first",
    "bravo": "enabled, runs, after the first",
    "idle": "enabled, stopped",
    BROKEN: "failed",
    "masked": "enabled, masked",
    MONITOR: "monitor",
}
EDITED = "/etc/default/citadel-llm-test"
EDIT = "# An administrator's.\n"
UNEDITED = f"/{CHANGED[0]}"
MODEL = "/var/lib/citadel-llm/models/zulu"
KEYS = "/etc/citadel-llm/mine.key"
CERTIFICATE, PRIVATE_KEY = "/etc/citadel-llm/bravo.pem", "/etc/citadel-llm/bravo.key"
"""Files of a single instance: zulu has its own model directory, alpha a key file, bravo a certificate."""

SETTINGS = {
    "alpha": ["REQUIRES=zulu", f"API_KEY_FILE={KEYS}"],
    "bravo": ["AFTER=zulu", f"TLS_CERT_FILE={CERTIFICATE}", f"TLS_KEY_FILE={PRIVATE_KEY}"],
}
KEPT = {
    "/var/lib/citadel-llm/models/mine/config.json": "{}",
    "/var/log/citadel-llm/mine.log": "a line\n",
    KEYS: "a-key\n",
    CERTIFICATE: made.CERTIFICATE,
    PRIVATE_KEY: made.KEY,
    "/etc/default/citadel-llm-mine": "MODEL=/var/lib/citadel-llm/models/mine\nPORT=11589\n",
}
"""Files of the administrator that every step except a purge must leave unchanged."""

TIMES = "ActiveExit", "ExecMainStart", "ActiveEnter"
PROPERTIES = ",".join(
    ["Id", "LoadState", "ActiveState", "MainPID", "StatusText", *(f"{time}TimestampMonotonic" for time in TIMES)]
)


def unit(name: str) -> str:
    return "citadel-llm-monitor.service" if name == MONITOR else f"citadel-llm@{name}.service"


class Unit(NamedTuple):
    """A unit at one moment; `left`, `began` and `ready` are microseconds of the machine's clock."""

    load: str
    state: str
    pid: int
    words: str
    left: int
    began: int
    ready: int


class Cycle:
    """A machine on which the package is installed, changed and removed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.rows: list[str] = []
        self.checks = 0
        self.before = self.look()
        self.mounts = self._list("findmnt", "-rno", "TARGET")
        self._links = self._list("find", "/etc/systemd", "/run/systemd/system", "-xtype", "l")

    def _list(self, *command: str) -> set[str]:
        return set(self.machine.run(*command, check=False).stdout.splitlines())

    def look(self) -> dict[str, Unit]:
        """The state of each of our units in systemd."""
        names = {unit(name): name for name in COLUMNS}
        text = self.machine.output("systemctl", "show", *names, f"--property={PROPERTIES}")
        found = {}
        for block in text.split("\n\n"):
            shown = dict(line.split("=", 1) for line in block.splitlines())
            load, state, pid, words = (shown[key] for key in ("LoadState", "ActiveState", "MainPID", "StatusText"))
            times = (int(shown[f"{time}TimestampMonotonic"] or 0) for time in TIMES)
            found[names[shown["Id"]]] = Unit(load, state, int(pid), words, *times)
        return found

    def apt(self, *arguments: str, fails: bool = False) -> str:
        """Run apt-get as unattended upgrades do, which keep edited conffiles; return the output."""
        keep = ("-oDpkg::Options::=--force-confdef", "-oDpkg::Options::=--force-confold")
        done = self.machine.run("apt-get", "-qy", "--allow-downgrades", *keep, *arguments, check=False)
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        return said

    def prepare(self) -> None:
        """Set up instances in every state, an administrator's files and an edited conffile; three instances run."""
        machine = self.machine
        for path, text in KEPT.items():
            machine.write(path, text)
        machine.run("cp", "-rT", TINY_MODEL, MODEL)
        for name, port in PORTS.items():
            options = [word for line in ["KV_CACHE_GB=0.25", *SETTINGS.get(name, [])] for word in ("--set", line)]
            model = MODEL if name == "zulu" else TINY_MODEL
            machine.run("citadel-llm", "create", name, "--model", model, "--port", str(port), *options)
        machine.write(f"/etc/default/citadel-llm-{BROKEN}", "MODEL=/missing\nPORT=11588\n")
        with machine.inside(EDITED).open("a") as file:
            file.write(EDIT)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", *map(unit, ("zulu", "bravo", "idle", "masked", BROKEN)))
        machine.run("systemctl", "mask", unit("masked"))
        machine.run("systemctl", "start", unit(BROKEN), check=False)
        machine.run("systemctl", "start", *map(unit, ("alpha", "bravo")))
        self.before = self.look()

    def setting(self, key: str, value: str) -> None:
        """Change a line of the host's settings file, another conffile that the administrator edits."""
        self.machine.run("sed", "-i", f"s/^{key}=.*/{key}={value}/", "/etc/default/citadel-llm")

    def row(self, step: str, status: str, what: str, version: str = "old", **expected: str) -> None:
        """Compare every unit with its expected state, run all other checks, and add a row to the table.

        Expected states: "same" process, "new" process, "stopped", "failed", "masked", or "gone" without a unit
        file. `status` is dpkg's, `version` that of the unedited settings, `what` the remark in the table.
        """
        now = self.look()
        seen = {name: self._word(name, now[name]) for name in COLUMNS}
        self.before = now
        assert seen == {name: expected.get(name, self._rest(name, status)) for name in COLUMNS}, step
        self._check(now, status, version)
        self.checks += len(seen)
        cells = " | ".join(seen[name] for name in COLUMNS)
        self.rows.append(f"| {step} | {cells} | {what} |")
        print(self.rows[-1], flush=True)

    def _rest(self, name: str, status: str) -> str:
        """The expected state of a unit that `row` does not name."""
        if name == "masked":
            return "masked" if status != "" else "gone"
        return "gone" if status in ("", "rc") else {BROKEN: "failed"}.get(name, "stopped")

    def _word(self, name: str, now: Unit) -> str:
        if now.state == "active":
            return "same" if now.pid == self.before[name].pid else "new"
        if now.load == "masked":
            return "masked"
        if now.load == "not-found" and now.state == "inactive":
            return "gone"
        return "stopped" if now.state == "inactive" else now.state

    def _check(self, now: dict[str, Unit], status: str, version: str) -> None:
        machine = self.machine
        runs = {name for name, seen in now.items() if seen.state == "active"}
        # Only running units have links, mounts, ports and processes.
        assert self._list("find", "/etc/systemd", "/run/systemd/system", "-xtype", "l") <= self._links
        credentials = {f"/run/credentials/{unit(name)}" for name in runs}
        assert self._list("findmnt", "-rno", "TARGET") <= self.mounts | credentials
        listening = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+) ", machine.output("ss", "-Hltn"))}
        ours = {port for name, port in PORTS.items() if name in runs} | (MONITOR_PORTS if MONITOR in runs else set())
        assert listening & {*PORTS.values(), *MONITOR_PORTS} == ours
        assert bool(self._list("pgrep", "-u", "agent0")) == bool(runs - {MONITOR})
        assert bool(self._list("pgrep", "-u", "citadel-llm-monitor")) == (MONITOR in runs)
        failed = self._list("systemctl", "list-units", "--failed", "--plain", "--no-legend", "citadel-llm*")
        assert [line.split()[0] for line in failed] == [unit(name) for name in now if now[name].state == "failed"]
        if not runs:
            assert not self._list("sh", "-c", "ls -d /tmp/systemd-private-*-citadel-llm*")
        # dpkg's state, users, settings, and files of the administrator.
        shown = machine.run("dpkg-query", "-Wf", "${db:Status-Abbrev}", "citadel-llm", check=False).stdout.strip()
        assert shown.removeprefix("un") == status
        if status == "ii":
            assert not machine.output("dpkg", "--audit")
        assert len(self._list("getent", "passwd", "agent0", "citadel-llm-monitor")) == 2
        assert machine.inside(KEPT_BY_PURGE).exists()
        if status:
            for path, text in KEPT.items():
                assert machine.inside(path).read_text() == text, path
            assert machine.inside(EDITED).read_text().endswith(EDIT)
            assert machine.inside(UNEDITED).read_text().endswith(COMMENT) == (version == "new")
        else:
            assert not self._list("sh", "-c", "ls -d /etc/default/citadel-llm* /etc/citadel-llm /var/log/citadel-llm")

    def report(self) -> None:
        """Print the table at the end of the run."""
        SUMMARY.extend(table(("step", *COLUMNS.values(), "and"), self.rows))
        SUMMARY.append(f"life cycle: {len(self.rows)} steps, {self.checks} states of units compared")


KEPT_BY_PURGE = "/var/lib/citadel-llm/models/mine/config.json"


def table(titles: Iterable[str], rows: list[str]) -> list[str]:
    """A table in the format of docs/lifecycle.md."""
    words = list(titles)
    return [f"| {' | '.join(words)} |", "|---" * len(words) + "|", *rows]


def apart(one: Unit, other: Unit) -> bool:
    """Whether two units were not loading at the same time."""
    return one.ready <= other.began or other.ready <= one.began


def served_through(one: Unit, other: Unit) -> bool:
    """Whether one of two units was up whenever the other was down."""
    return one.ready <= other.left or other.ready <= one.left
