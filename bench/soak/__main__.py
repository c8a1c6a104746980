"""`./build.sh soak`: three instances under steady load, with a fault every minute; then report what was lost or grew.

open     takes every fault of docs/faults.md
keyed    has API keys and TLS; its server and engine take faults, its main process does not
spared   takes no fault, so that its processes live through the whole run

Between the faults, the instances are reloaded, keys are added and revoked, and hostile clients connect. A failed
request counts as lost unless it falls into the time of a fault that may cost it. After a run of at least 45 minutes,
the low values (a tenth of the samples is below) of memory, descriptors, threads and files in the last ten minutes are
compared with those of minutes 25 to 35. Exit status 1 if something was lost or has grown by more than 2 %.
"""

import argparse
import contextlib
import datetime
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))

import certificates
from base_tree import PROJECT
from faults import HANGS, Loses, Row, Settings, Victim, hanging_engine
from machine import Machine, MachineError
from waiting import until

from bench.about import about
from bench.soak import report, verdict
from bench.soak.plan import Act, Step, Subject, plan
from bench.soak.verdict import Figure, Trend, Window

CLIENTS = Path(__file__).with_name("clients")
FOLDER = "/root/soak"
CERTIFICATE, PRIVATE_KEY = "/etc/ssl/soak.pem", "/etc/ssl/soak.key"
MONITOR = "citadel-llm-monitor"
TINY_MODEL = "/usr/share/citadel-llm/models/test"
RATE = 2.0
"""Requests a second to each instance."""
PUBLISHED_HOURS, PUBLISHED_EVERY_SEC = 2.0, 60.0
"""A shorter run, or one with another time between faults, is printed and not written."""
SAMPLE_SEC = 5.0
COMMON: Settings = {
    "MODEL": TINY_MODEL, "KV_CACHE_GB": 0.25, "RESTART_SEC": 1, "START_TIMEOUT_SEC": 60, "HANG_TIMEOUT_SEC": 20,
    "MAX_MODEL_LEN": 2000,
}  # fmt: skip
TLS: Settings = {"TLS_CERT_FILE": CERTIFICATE, "TLS_KEY_FILE": PRIVATE_KEY}
SUBJECTS = (
    Subject(
        "open",
        {**COMMON, **HANGS, "PORT": 21201, "MEMORY_LIMIT_GB": 2},
        frozenset(Loses),
        frozenset({Act.RELOAD, Act.HOSTILE}),
    ),
    Subject(
        "keyed",
        {**COMMON, **HANGS, "PORT": 21202, **TLS, "API_KEY_FILE": "/etc/citadel-llm/keyed.keys"},
        frozenset({Loses.NOTHING, Loses.SERVER}),
        frozenset(Act),
    ),
    Subject("spared", {**COMMON, "PORT": 21203}, frozenset(), frozenset({Act.HOSTILE})),
)
STORE = """
import json, sqlite3
store = sqlite3.connect("file:/var/lib/citadel-llm/monitor/monitor.sqlite?mode=ro", uri=True)
tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
print(json.dumps({name: dict(store.execute(f"SELECT instance, COUNT(*) FROM {name} GROUP BY 1")) for name in tables}))
"""
begin = time.monotonic()


def say(text: str) -> None:
    print(f"\033[1m[{time.monotonic() - begin:5.0f}s]\033[0m {text}", file=sys.stderr, flush=True)


class Soak:
    """One run on one booted machine."""

    def __init__(self, machine: Machine, every: float) -> None:
        self.machine = machine
        self.wrong: list[str] = []
        self.windows: list[Window] = []
        self.series: dict[Figure, list[tuple[float, float]]] = {}
        self.happened: list[str] = []
        self.changes: Counter[str] = Counter()
        self._every = every
        self._reloads = 0
        self._victims: dict[str, Victim] = {}
        self._begin = 0.0

    def set_up(self) -> None:
        """Write the settings and start the instances."""
        for file in (*CLIENTS.glob("*.py"), PROJECT / "tests/hostile_clients.py"):
            self.machine.copy_in(file, f"{FOLDER}/{file.name}")
        for path, text in ((CERTIFICATE, certificates.CERTIFICATE), (PRIVATE_KEY, certificates.KEY)):
            self.machine.write(path, text)
            self.machine.run("chmod", "600", path)
        for subject in SUBJECTS:
            Victim(self.machine, subject.name, subject.settings).write()
        key = self.machine.output("citadel-llm", "key", "add", "keyed", "--name", "load")
        for subject in SUBJECTS:
            own = key if "API_KEY_FILE" in subject.settings else ""
            self._victims[subject.name] = Victim(self.machine, subject.name, subject.settings, own)
        for victim in self._victims.values():
            say(f"starting {victim.unit}")
            self.machine.run("systemctl", "start", victim.unit)

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Send requests to all instances; wait for their outcomes in the end."""
        targets = [
            {
                "name": victim.name,
                "url": victim.url,
                "key": victim.key,
                "certificate": CERTIFICATE if victim.url.startswith("https") else "",
            }
            for victim in self._victims.values()
        ]
        self.machine.write(f"{FOLDER}/plan.json", json.dumps({"rate": RATE, "targets": targets}))
        command = ["/opt/citadel/env/bin/python", "-I", f"{FOLDER}/load.py"]
        files = [f"{FOLDER}/{name}" for name in ("plan.json", "outcomes", "enough")]
        self.machine.run("systemd-run", "--quiet", "--unit=soak-load", *command, *files)
        self._begin = time.time()
        yield
        self.machine.write(f"{FOLDER}/enough", "")
        until(lambda: not self._load_runs(), "the load client has ended")

    def lasted(self) -> float:
        """Seconds since the beginning of the load."""
        return time.time() - self._begin

    def _load_runs(self) -> bool:
        return self.machine.show("soak-load", "ActiveState")["ActiveState"] == "active"

    def outcomes(self) -> verdict.Load:
        """The requests that have finished."""
        with self.machine.inside(f"{FOLDER}/outcomes").open(encoding="utf-8") as lines:
            return verdict.read_load(lines)

    def rows(self) -> verdict.Rows:
        """The rows of the monitor's store."""
        rows: verdict.Rows = json.loads(self.machine.output("/usr/bin/python3", "-I", "-c", STORE))
        return rows

    def wait(self, at: float) -> None:
        """Sample until a time (seconds since the beginning of the load); at least once."""
        while True:
            self._sample()
            left = at - self.lasted()
            if left <= 0:
                return
            time.sleep(min(SAMPLE_SEC, left))

    def _sample(self) -> None:
        units = {f"citadel-llm@{name}": name for name in self._victims} | {MONITOR: "monitor"}
        said = self.machine.output("/usr/bin/python3", "-I", f"{FOLDER}/sample.py", *units)
        at = self.lasted()
        for unit, roles in json.loads(said).items():
            for role, figures in roles.items():
                for what, value in figures.items():
                    self.series.setdefault(Figure(units[unit], role, what), []).append((at, value))

    def run(self, steps: Iterable[Step], seconds: float) -> None:
        """Take the steps, for as long as the run lasts. A step that fails ends the run; what was measured is kept."""
        for step in steps:
            # A fault may take longer than its minute.
            if self.lasted() >= seconds:
                break
            try:
                self.step(step)
            except (AssertionError, MachineError, RuntimeError) as error:
                self.wrong.append(f"ended early by {step.fault.name} in {step.victim.name}: {error}")
                say(self.wrong[-1])
                break

    def write_samples(self, path: Path) -> None:
        """Write all samples so far as JSON."""
        samples = [{**figure._asdict(), "samples": points} for figure, points in self.series.items()]
        path.write_text(json.dumps(samples), encoding="utf-8")

    def step(self, step: Step) -> None:
        """Inject a fault, do what follows it, and report."""
        victim = self._victims[step.victim.name]
        at = time.time()
        # Each fault counts on its own, as in docs/faults.md.
        self.machine.run("systemctl", "reset-failed", victim.unit, check=False)
        row = victim.inject(step.fault)
        self._note(step, at, row)
        if unexpected := step.fault.unexpected(row):
            self.wrong.append(f"{victim.name}: {row} (expected otherwise: {', '.join(unexpected)})")
            say(self.wrong[-1])
        victim.wait_until_ready()
        self._act(step.act, self._victims[step.subject.name])
        self.wait(step.at + self._every)
        if not self._load_runs():
            raise RuntimeError(f"the load client ended: {self.machine.output('journalctl', '-u', 'soak-load')}")
        load = self.outcomes()
        memory = ", ".join(
            f"{name} {points[-1][1]:.0f}" for name, points in report.curves(self.series).items() if points
        )
        say(
            f"{step.at / 60:3.0f} min: {step.victim.name}: {step.fault.name}: found {_seconds(row.found)}, "
            f"serving {_seconds(row.serving)}; {step.subject.name}: {step.act.value}; requests: "
            f"{sum(load.served.values())} answered, {len(load.failed)} failed, "
            f"{len(verdict.unexplained(load, self.windows))} lost; MiB: {memory}"
        )

    def _note(self, step: Step, at: float, row: Row) -> None:
        serving = row.at + row.serving
        found = serving if row.found is None else row.at + row.found
        self.windows.append(Window(step.fault.name, step.victim.name, step.fault.loses, at, found, serving))
        self.happened += [step.fault.name, step.act.value]
        self.changes[step.victim.name] += 1

    def _act(self, act: Act, victim: Victim) -> None:
        match act:
            case Act.RELOAD:
                self._reloads += 1
                self.changes[victim.name] += 1
                victim.write(MAX_MODEL_LEN=2000 + self._reloads % 40)
                self.machine.run("citadel-llm", "reload", victim.name)
            case Act.KEYS:
                key = self.machine.output("citadel-llm", "key", "add", victim.name, "--name", "passing")
                self.machine.run("citadel-llm", "reload", victim.name)
                other = Victim(self.machine, victim.name, victim.settings, key)
                self._expect(other, "200")
                self.machine.run("citadel-llm", "key", "revoke", victim.name, "passing")
                self._expect(other, "401")
            case Act.HOSTILE:
                scheme = "TLS" if victim.url.startswith("https") else "PLAIN"
                client = ["/usr/bin/python3", "-I", f"{FOLDER}/hostile.py", str(victim.port), scheme]
                self.machine.run(*client, timeout=120)

    def _expect(self, client: Victim, status: str) -> None:
        said = self.machine.output("sh", "-c", client.request("/v1/models", 30))
        if said != status:
            raise RuntimeError(f"{client.name} answered a key with {said}, expected {status}")


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"after {value:.1f} s"


def results(soak: Soak, load: verdict.Load, trends: list[Trend], facts: dict[str, str]) -> dict[str, Any]:
    """The results for bench/soak.json."""
    lost = Counter(request.instance for request in verdict.unexplained(load, soak.windows))
    failed = Counter(request.instance for request in load.failed)
    return {
        "about": facts,
        "requests": {
            name: {"served": load.served.get(name, 0), "failed": failed[name], "unexplained": lost[name]}
            for name in load.sent
        },
        "happened": soak.happened,
        "trends": [verdict.as_json(trend) for trend in trends],
        "memory": report.curves(soak.series),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./build.sh soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=PUBLISHED_HOURS, help="length of the run (%(default)s)")
    parser.add_argument("--seed", type=int, help="repeat the faults of a run with this seed (a random one is printed)")
    parser.add_argument(
        "--fault-every",
        type=float,
        default=PUBLISHED_EVERY_SEC,
        metavar="SEC",
        help="pause between faults (%(default)s)",
    )
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write all samples to this file, as JSON")
    chosen = parser.parse_args()
    if chosen.hours <= 0 or chosen.fault_every <= 0:
        parser.error("--hours and --fault-every must be above 0")
    seed = secrets.randbelow(10**6) if chosen.seed is None else chosen.seed
    seconds, package = chosen.hours * 3600, Path(os.environ["CITADEL_BENCH_PACKAGE"])
    steps = plan(seed, seconds, chosen.fault_every, SUBJECTS)
    print(f"seed: {seed}; repeat this run with --seed {seed}", flush=True)
    say("booting a Debian 12 and installing the package")
    began = datetime.datetime.now(tz=datetime.UTC).date()
    with Machine.boot("soak") as machine:
        machine.copy_in(package, f"/root/{package.name}")
        machine.run("apt-get", "-qy", "install", f"/root/{package.name}")
        with hanging_engine(machine):
            soak = Soak(machine, chosen.fault_every)
            soak.set_up()
            try:
                with soak.load():
                    say(f"load: {RATE:g} requests a second to each of {', '.join(one.name for one in SUBJECTS)}")
                    soak.wait(chosen.fault_every)
                    before = soak.rows()
                    soak.run(steps, seconds)
            finally:
                # First: whatever happens next, the samples of hours are not lost.
                if chosen.samples:
                    soak.write_samples(chosen.samples)
        load, after = soak.outcomes(), soak.rows()
        lasted = max(at for samples in soak.series.values() for at, _ in samples)
        trends = verdict.trends(soak.series, lasted)
        days = (datetime.datetime.now(tz=datetime.UTC).date() - began).days + 1
        wrong = [*soak.wrong, *verdict.store_grew(before, after, soak.changes, days)]
        wrong += [*verdict.lost(load, soak.windows), *verdict.grown(trends), *verdict.unknown(soak.series, lasted)]
        if wrong:
            print(f"the journal of {machine.name}: {machine.keep_journal()}", flush=True)
    facts = {**about(package), "hours": f"{lasted / 3600:.1f}", "seed": str(seed)}
    found = results(soak, load, trends, facts)
    print(report.section(found))
    if lasted < verdict.LEAST_SEC:
        print(f"growth: not compared, the run is shorter than {verdict.LEAST_SEC / 60:.0f} minutes")
    for text in wrong:
        print(f"soak: {text}", file=sys.stderr)
    if not wrong and chosen.hours >= PUBLISHED_HOURS and chosen.fault_every == PUBLISHED_EVERY_SEC:
        for path in report.write(found):
            say(f"written: {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, MachineError, RuntimeError) as error:
        sys.exit(f"soak: {error}")
    except KeyboardInterrupt:
        sys.exit("soak: interrupted; the machine is gone")
