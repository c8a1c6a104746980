"""Measurements that need no running model: generator, command, monitor, exposure, package, installation."""

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from base_tree import PROJECT, package_depends
from fakes import Fakes
from machine import Machine

from bench.rows import Bound, Row

GENERATOR = "/lib/systemd/system-generators/citadel-llm-generator"
MONITOR = "citadel-llm-monitor"
INSTANCES = (1, 100, 2000)
WATCHED = 50
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")
MEGABYTE = 10**6

Say = Callable[[str], None]


def generator(machine: Machine, say: Say) -> list[Row]:
    """Time the generator and `systemctl daemon-reload` with 1, 100 and 2,000 settings files; no instance runs."""
    rows = []
    machine.write("/root/bench/generator.py", Path(__file__).with_name("clients").joinpath("generator.py").read_text())
    with _aside(machine):
        machine.run("systemctl", "stop", MONITOR)
        bare = [_timed(machine, "systemctl", "daemon-reload") * 1000 for _ in range(5)]
        for number in INSTANCES:
            defaults = machine.inside("/etc/default")
            for instance in range(number):
                settings = f"MODEL=/usr/share/citadel-llm/models/test\nPORT={10000 + instance}\nMEMORY_LIMIT_GB=8\n"
                (defaults / f"citadel-llm-many-{instance}").write_text(settings, encoding="utf-8")
            runs = "5" if number > 1000 else "21"
            times = machine.output("/usr/bin/python3", "-I", "/root/bench/generator.py", GENERATOR, runs).split()
            reloads = [_timed(machine, "systemctl", "daemon-reload") * 1000 for _ in range(3)]
            bounds = {100: [Bound(50)], 2000: [Bound(500)]}.get(number, [])
            what = f"{number:,} instance{'s' if number > 1 else ''}"
            rows.append(Row("generator", f"generator, {what}", "ms", [], [float(one) for one in times], bounds))
            rows.append(Row("generator", f"daemon-reload, {what} (plain: none)", "ms", bare, reloads))
            say(f"{what}: generator {statistics.median(map(float, times)):.0f} ms")
    machine.run("systemctl", "start", MONITOR)
    return rows


@contextlib.contextmanager
def _aside(machine: Machine) -> Iterator[None]:
    """Set the instances' settings files aside; afterwards delete the files created meanwhile and restore the others."""
    kept = {file.name: file.read_bytes() for file in machine.inside("/etc/default").glob("citadel-llm-*")}
    _remove_instances(machine)
    try:
        yield
    finally:
        _remove_instances(machine)
        for name, content in kept.items():
            machine.inside(f"/etc/default/{name}").write_bytes(content)
        machine.run("systemctl", "daemon-reload")


def _remove_instances(machine: Machine) -> None:
    for file in machine.inside("/etc/default").glob("citadel-llm-*"):
        file.unlink()


def _timed(machine: Machine, *command: str) -> float:
    begin = time.monotonic()
    machine.run(*command)
    return time.monotonic() - begin


def command(machine: Machine, say: Say) -> list[Row]:
    """Time `citadel-llm list` and, for comparison, `systemctl list-units`, which prints less."""
    asked = ["systemctl", "list-units", "--all", "citadel-llm@*"]
    pair = [_timed(machine, *asked) for _ in range(9)], [_timed(machine, "citadel-llm", "list") for _ in range(9)]
    say(f"citadel-llm list: {statistics.median(pair[1]):.2f} s")
    return [Row("host", "citadel-llm list (plain: systemctl list-units)", "s", *pair, [Bound(0.3)])]


def exposure(machine: Machine, plain: str, ours: str) -> list[Row]:
    """Exposure of the units as rated by systemd-analyze."""
    scores = []
    for unit in (plain, ours, MONITOR):
        last = machine.output("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
        scores.append(float(last.split(": ")[1].split()[0]))
    return [
        Row(
            "host",
            "exposure of a CPU instance (systemd-analyze security)",
            "of 10",
            scores[:1],
            scores[1:2],
            [Bound(1.2)],
        ),
        Row("host", "exposure of the monitor", "of 10", [], scores[2:], [Bound(1.2)]),
    ]


def monitor(machine: Machine, say: Say) -> list[Row]:
    """Measure the monitor with fifty running fake instances, which answer and have no engine."""
    fakes = Fakes(machine)
    names = [f"many-{number}" for number in range(WATCHED)]
    for name in names:
        fakes.make(name, MEMORY_LIMIT_GB=0.5)
    machine.run("systemctl", "restart", MONITOR)
    fakes.start(*names)
    machine.run("sleep", "15")
    pid = machine.show(MONITOR, "MainPID")["MainPID"]
    ticks = [_ticks(machine, pid)]
    times = []
    for _ in range(20):
        # The monitor reuses an answer for a second; each scrape must get a new one.
        machine.run("sleep", "1.1")
        said = machine.output("curl", "-sf", "-o", "/dev/null", "-w", "%{time_total}", "http://127.0.0.1:9090/metrics")
        times.append(float(said) * 1000)
    begin = time.monotonic()
    ticks.append(_ticks(machine, pid))
    machine.run("sleep", "10")
    busy = (_ticks(machine, pid) - ticks[1]) / TICKS_PER_SEC / (time.monotonic() - begin) * 100
    resident = int(machine.output("awk", "/VmRSS/ {print $2}", f"/proc/{pid}/status")) * 1024 / MEGABYTE
    fakes.forget()
    say(f"monitor with {WATCHED}: {resident:.0f} MB, {statistics.median(times):.0f} ms a scrape")
    return [
        Row("monitor", f"monitor's memory with {WATCHED} instances (RSS)", "MB", [], [resident], [Bound(80)]),
        Row("monitor", f"a scrape of {WATCHED} instances", "ms", [], times, [Bound(50)]),
        Row("monitor", f"monitor's CPU time with {WATCHED} instances, not scraped", "% of a core", [], [busy]),
    ]


def _ticks(machine: Machine, pid: str) -> int:
    user, system = machine.output("cut", "-d", " ", "-f", "14,15", f"/proc/{pid}/stat").split()
    return int(user) + int(system)


def package(path: Path, say: Say) -> list[Row]:
    """Size of the package, and how long its last build on this host took."""
    size = path.stat().st_size / MEGABYTE
    rows = [Row("package", "package", "MB", [], [size], [Bound(600)])]
    try:
        rows.append(
            Row("package", "build and lintian, the wheels at hand", "s", [], [float(_seconds(path).read_text())])
        )
    except FileNotFoundError:
        say("build time: not measured, the package was not built here; run ./build.sh clean and build again")
    return rows


def _seconds(path: Path) -> Path:
    """The file in which packaging/deb.sh records the duration of a build."""
    return path.with_name(f".{path.name}.seconds")


def installation(path: Path, wheels: Path, rounds: int, say: Say) -> list[Row]:
    """Time `apt install` of the package and `pip install` of the same lock from local wheels, on fresh machines.

    The distribution's packages that either needs are installed before; the files are in the page cache.
    """
    pair: tuple[list[float], list[float]] = ([], [])
    lock = PROJECT / "requirements/cpu.txt"
    pip = ["/root/env/bin/pip", "install", "-q", "--no-index", "--find-links", "/root/wheels", "--no-deps",
           "--require-hashes", "-r", "/root/cpu.txt"]  # fmt: skip
    with contextlib.ExitStack() as machines:
        for turn, ours in itertools.product(range(rounds), (False, True)):
            # Keep all machines until the end: after many deletions, ext4 without a journal is slow for minutes.
            machine = machines.enter_context(Machine.boot(f"install-{turn}-{ours:d}"))
            machine.run("apt-get", "-qy", "install", "--no-install-recommends", "python3-venv", *package_depends())
            if ours:
                machine.copy_in(path, f"/root/{path.name}")
                steps = [["apt-get", "-qy", "install", f"/root/{path.name}"]]
            else:
                machine.copy_in(wheels, "/root/wheels")
                machine.copy_in(lock, "/root/cpu.txt")
                steps = [["python3", "-m", "venv", "/root/env"], pip]
            # Write the copied files to the disk before the measurement starts.
            machine.run("sync")
            took = sum(_timed(machine, *step) for step in steps)
            pair[ours].append(took)
            say(f"{'apt' if ours else 'pip'} install: {took:.0f} s")
    return [Row("package", "apt install (plain: pip install of the same lock)", "s", *pair, [Bound(20)])]
