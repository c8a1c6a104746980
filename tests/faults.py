"""The faults of docs/faults.md, and their injection into an instance on a booted machine.

The tests and the soak use the same list. Standard library only: the soak runs with the distribution's Python.
"""

import contextlib
import enum
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from machine import Machine
from waiting import until

FIRST_TOKEN_SEC = 1
"""Timeout of a request that checks whether an instance serves."""

Settings = Mapping[str, str | float]


class Loses(enum.Enum):
    """The requests that a fault may cost."""

    NOTHING = "no request"
    SERVER = "the requests that the server has taken when it ends"
    SERVICE = "requests until the instance serves again"


class Row(NamedTuple):
    """One fault and its outcome: `at` in seconds since the epoch, the other times in seconds since the fault."""

    at: float
    fault: str
    found: float | None
    words: str
    exit_status: str
    counters: str
    serving: float

    def __str__(self) -> str:
        found = "no failure" if self.found is None else f"{self.found:.1f} s"
        return (
            f"| {self.fault} | {found} | {self.words} | {self.exit_status} | {self.counters} | {self.serving:.1f} s |"
        )


class Victim:
    """An instance that the monitor watches, and into which faults are injected.

    `key` is an API key that it accepts, if it requires one.
    """

    def __init__(self, machine: Machine, name: str, settings: Settings, key: str = "") -> None:
        self.machine, self.name, self.settings = machine, name, settings
        self.unit = f"citadel-llm@{name}"
        self.port = int(settings["PORT"])
        scheme = "https" if "TLS_CERT_FILE" in settings else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.key = key

    def write(self, **more: str | float) -> None:
        """Write the instance's settings file and reload systemd."""
        lines = [f"{key}={value}\n" for key, value in {**self.settings, **more}.items()]
        self.machine.write(f"/etc/default/citadel-llm-{self.name}", "".join(lines))
        self.machine.run("systemctl", "daemon-reload")

    def restart(self, **settings: str | float) -> None:
        """Restart the instance with these settings so that no earlier failure counts."""
        self.write(**settings)
        self.machine.run("systemctl", "stop", self.unit)
        self.machine.run("systemctl", "reset-failed", self.unit, check=False)
        self.machine.run("systemctl", "start", self.unit)

    def request(self, path: str, seconds: float, *words: str) -> str:
        """The shell command of a request, which prints the status code."""
        secret = f"-H 'Authorization: Bearer {self.key}' " if self.key else ""
        return (
            f"curl -s -k -o /dev/null --max-time {seconds:g} -w '%{{http_code}}' {secret}"
            f"{''.join(f'{word} ' for word in words)}{self.url}{path}"
        )

    def completion(self, seconds: float, tokens: int) -> str:
        """The shell command that requests a completion and prints the status code."""
        body = json.dumps({"prompt": "x", "max_tokens": tokens, "ignore_eos": True})
        return self.request("/v1/completions", seconds, "-H 'Content-Type: application/json'", f"-d '{body}'")

    def counters(self) -> dict[str, float]:
        """The monitor's counters of the instance."""
        metric = re.compile(
            r'citadel_llm_service_(restarts|failures)_total\{(?:result="([a-z-]+)",)?'
            rf'service="{re.escape(self.name)}"\}} (\S+)'
        )
        text = self.machine.output("curl", "-s", "--max-time", "10", "http://127.0.0.1:9090/metrics")
        found = filter(None, map(metric.match, text.splitlines()))
        return {match[2] or match[1]: float(match[3]) for match in found}

    def inject(self, fault: "Fault") -> Row:
        """Inject a fault, wait until the model answers again, and collect messages and counters."""
        fault.prepare(self)
        before = self.counters()
        if fault.under_load:
            self.machine.run("sh", "-c", f"{self.completion(120, 1900)} >/dev/null 2>&1 & sleep 0.5")
        begin = time.time()
        fault.inflict(self)
        served = self.serving(begin, fault.within)
        found, words, status, reason = self._journal(begin)
        # systemd notifies the monitor at once; the monitor reads the rest at the next request.
        for _ in range(20):
            after = self.counters()
            rose = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
            if rose or found is None:
                break
            time.sleep(0.5)
        # A failure that ends the main process is counted by the exit status.
        assert status != "none" or not reason or reason in rose, "the monitor counts the reason that the journal names"
        counted = ", ".join(f"{name} +{rise:g}" for name, rise in sorted(rose.items())) or "none"
        return Row(begin, fault.name, found, words, status, counted, served)

    def serving(self, begin: float, within: float) -> float:
        """Time from `begin` until the instance answers one of its requests, each with a timeout of a second."""
        while True:
            status = self.machine.run("sh", "-c", self.completion(FIRST_TOKEN_SEC, 1), check=False).stdout
            took = time.time() - begin
            if status == "200":
                return took
            assert took < within, f"{self.name} does not serve after {within:g} s: {self._status()}"
            time.sleep(0.1)

    def wait_until_ready(self) -> None:
        """Wait until the main process reports Ready; a waiting client may be answered shortly before."""
        until(lambda: self._status().startswith("Ready"), f"{self.name} is ready")

    def _status(self) -> str:
        return self.machine.show(self.unit, "StatusText")["StatusText"]

    def _journal(self, begin: float) -> tuple[float | None, str, str, str]:
        """Time and text of the first report of the fault, exit status of the main process if it ended, and the reason
        that the main process reported, if any.
        """
        self.machine.run("journalctl", "--sync")
        query = ["journalctl", f"--unit={self.unit}", f"--since=@{begin:.6f}", "-o", "json"]
        entries = [json.loads(line) for line in self.machine.output(*query).splitlines()]
        told = [entry for entry in entries if "CITADEL_REASON" in entry or "EXIT_STATUS" in entry]
        watchdog = [entry for entry in entries if "Watchdog timeout" in str(entry["MESSAGE"])]
        ends = [entry["EXIT_STATUS"] for entry in told if "EXIT_STATUS" in entry]
        if not told:
            return None, "", "none", ""
        first = (watchdog or told)[0]
        reason = first.get("CITADEL_REASON", "")
        assert not reason or first["CITADEL_SERVICE"] == self.name
        return (
            int(first["__REALTIME_TIMESTAMP"]) / 1e6 - begin,
            first["MESSAGE"].split(";")[0].removeprefix(f"{self.unit}.service: "),
            ", ".join(ends) or "none",
            reason,
        )

    def kill(self, signal: str, process: str) -> None:
        """Send a signal to the instance's processes whose title matches from its beginning."""
        group = self.machine.show(self.unit, "ControlGroup")["ControlGroup"]
        script = f"cat /sys/fs/cgroup/systemd{group}/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup{group}/cgroup.procs"
        own = self.machine.output("sh", "-c", script).split()
        titled = self.machine.output("pgrep", "-f", f"^{process}").split()
        self.machine.run("kill", f"-{signal}", *sorted(set(own) & set(titled)))

    def kill_main(self, signal: str) -> None:
        """Send a signal to the unit's main process."""
        self.machine.run("systemctl", "kill", "--kill-who=main", f"--signal={signal}", self.unit)

    def hang(self, how: str) -> None:
        """Make the real engine hang ("sleep", "spin") or grow ("grow") in the middle of a step.

        The instance needs the settings HANGS, and `hanging_engine`.
        """
        mark = f"/var/cache/citadel-llm/{self.name}/engine/hang"
        begin = f"echo {how} >{mark}; chmod 666 {mark}"
        self.machine.run("sh", "-c", f"{begin}; {self.completion(60, 5)} >/dev/null 2>&1 & sleep 1")


HANGING = """
import os, time
from vllm.v1.sample.logits_processor import LogitsProcessor

class Hanging(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory):
        # The engine's home is its own directory in the cache of its instance.
        self.mark = os.path.expanduser("~/hang")

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        if os.path.exists(self.mark):
            with open(self.mark) as file:
                how = file.read().strip()
            os.unlink(self.mark)
            if how == "grow":
                self.held = [b"x" * 2**24 for _ in range(1000)]
            while True:
                time.sleep(3600) if how == "sleep" else None
        return logits
"""
HANGS: Settings = {"VLLM_ARGS": "'--logits-processors hanging:Hanging'"}
"""Settings with which `Victim.hang` can reach the engine."""


@contextlib.contextmanager
def hanging_engine(machine: Machine) -> Iterator[None]:
    """Give the machine's vLLM a module that makes an engine hang when told to."""
    file = "/opt/citadel/env/lib/python3.11/site-packages/hanging.py"
    machine.write(file, HANGING)
    try:
        yield
    finally:
        # An interrupted machine may be gone already.
        machine.inside(file).unlink(missing_ok=True)


def _nothing(_: Victim) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """A fault and its expected outcome.

    `settings` are those that the instance needs, `prepare` is what precedes the fault, and `also` verifies what the
    outcome's row does not show. `words`, `exit_status` and `counters` are regular expressions for the row's columns;
    the last two match the whole column. `found` and `within` are the longest times until the fault is found and until
    the instance serves again (seconds).
    """

    name: str
    inflict: Callable[[Victim], object]
    loses: Loses
    counters: str
    exit_status: str = "none"
    words: str = ""
    found: float | None = None
    within: float = 120
    under_load: bool = False
    settings: Settings | None = None
    prepare: Callable[[Victim], object] = _nothing
    also: Callable[[Victim], object] = _nothing

    def unexpected(self, row: Row) -> list[str]:
        """The columns of an outcome, except its times, that are not as expected."""
        columns = ((self.words, row.words), (self.exit_status, row.exit_status), (self.counters, row.counters))
        differ = [not re.search(*columns[0]), *(not re.fullmatch(*column) for column in columns[1:])]
        return [seen for (_, seen), different in zip(columns, differ, strict=True) if different]


def _signal(signal: str, process: str) -> Callable[[Victim], None]:
    return lambda victim: victim.kill(signal, process)


def _hang_while_healthy(how: str) -> Callable[[Victim], None]:
    """The monitor continues to probe /health, which answers."""

    def hang(victim: Victim) -> None:
        victim.hang(how)
        assert victim.machine.output("sh", "-c", victim.request("/health", 10)) == "200"

    return hang


def _fork_server_killed(victim: Victim) -> None:
    """The next engine comes from a new fork server, which has begun to import vLLM meanwhile."""
    victim.kill("KILL", "VLLM::ForkServer")
    time.sleep(12)


def _kernel_kill_is_counted(victim: Victim) -> None:
    metrics = victim.machine.output("curl", "-s", "http://127.0.0.1:9090/metrics")
    assert re.search(rf'citadel_llm_service_oom_kills_total\{{service="{victim.name}"\}} [1-9]', metrics)


def _stop_main(victim: Victim) -> None:
    """The model answers while its main process is stopped."""

    def restarts() -> str:
        return victim.machine.show(victim.unit, "NRestarts")["NRestarts"]

    before = restarts()
    victim.kill_main("STOP")
    until(lambda: restarts() != before, "the watchdog ends the main process")


def _kill_four_times(victim: Victim) -> None:
    for _ in range(3):
        victim.kill("KILL", "VLLM::EngineCore")
        time.sleep(0.5)
        victim.serving(time.time(), 60)
        victim.wait_until_ready()
    victim.kill("KILL", "VLLM::EngineCore")


def _earlier_failures_are_reported(victim: Victim) -> None:
    victim.machine.run("journalctl", "--sync")
    journal = victim.machine.output("journalctl", "-u", victim.unit, "-o", "cat")
    assert "and 3 before it in the last 300 s" in journal


def _stop_unit(victim: Victim) -> None:
    victim.machine.run("systemctl", "stop", victim.unit)


def _steal_port(victim: Victim) -> None:
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {victim.port})); time.sleep(3)"
    victim.machine.run("systemd-run", "--quiet", "--collect", "python3", "-c", listen)
    victim.machine.run("sh", "-c", f"until ss -ltn | grep -q :{victim.port}; do sleep 0.1; done", timeout=10)
    victim.machine.run("systemctl", "start", victim.unit, check=False)


def _too_little_memory(victim: Victim) -> None:
    """The cache is larger than the limit and set by a flag that the check ignores."""
    victim.write(MEMORY_LIMIT_GB=1, VLLM_ARGS="'--kv-cache-memory-bytes 4000000000'")
    assert victim.machine.run("systemctl", "restart", victim.unit, check=False).returncode != 0
    shown = victim.machine.show(victim.unit, "StatusText")
    assert "MEMORY_LIMIT_GB=1 is too little" in shown["StatusText"], shown
    victim.write()


def _refused_flags(victim: Victim) -> None:
    victim.write(VLLM_ARGS="'--max-num-seqs 300 --max-num-batched-tokens 200'")
    assert victim.machine.run("systemctl", "restart", victim.unit, check=False).returncode != 0
    shown = victim.machine.show(victim.unit, "ActiveState", "NRestarts", "StatusText")
    assert (shown["ActiveState"], shown["NRestarts"]) == ("failed", "0"), shown
    assert "vLLM refuses these settings" in shown["StatusText"], shown
    victim.write()
    victim.machine.run("systemctl", "start", victim.unit)


FAULTS = (
    *(
        Fault(
            f"SIGKILL of {process}",
            _signal("KILL", process),
            Loses.SERVER,
            found=2,
            counters=r"engine-died \+1",
        )
        for process in ("VLLM::EngineCore", "VLLM::APIServer")
    ),
    Fault("SIGKILL of VLLM::ForkServer", _signal("KILL", "VLLM::ForkServer"), Loses.NOTHING, counters="none"),
    Fault(
        "SIGKILL of multiprocessing's resource tracker",
        _signal("KILL", ".*resource_tracker"),
        Loses.NOTHING,
        counters="none",
    ),
    Fault(
        "SIGKILL of VLLM::EngineCore 12 s after the fork server",
        _signal("KILL", "VLLM::EngineCore"),
        Loses.SERVER,
        counters=r"engine-died \+1",
        prepare=_fork_server_killed,
    ),
    *(
        Fault(
            f"SIGSTOP of {process} under load",
            _signal("STOP", process),
            Loses.SERVER,
            found=20,
            counters=r"engine-hung \+1",
            under_load=True,
        )
        for process in ("VLLM::EngineCore", "VLLM::APIServer")
    ),
    *(
        Fault(
            f"engine hangs in a step ({how}s), /health answers",
            _hang_while_healthy(how),
            Loses.SERVER,
            found=30,
            # A sleeping engine is found sooner if its threads use no CPU time and read nothing.
            words="no process works on|no token has come",
            counters=r"engine-hung \+1",
            settings=HANGS,
        )
        for how in ("sleep", "spin")
    ),
    Fault(
        "engine grows beyond MEMORY_LIMIT_GB",
        # The kernel kills the engine and no other process of the service.
        lambda victim: victim.hang("grow"),
        Loses.SERVER,
        words="ended: out of memory, MEMORY_LIMIT_GB=2 is too little",
        counters=r"out-of-memory \+1",
        settings={**HANGS, "MEMORY_LIMIT_GB": 2},
        also=_kernel_kill_is_counted,
    ),
    Fault(
        "SIGKILL of the main process",
        lambda victim: victim.kill_main("KILL"),
        Loses.SERVICE,
        exit_status="9",
        counters=r"restarts \+1, signal \+1",
    ),
    Fault(
        "SIGSTOP of the main process",
        _stop_main,
        Loses.SERVICE,
        within=300,
        words="atchdog",
        exit_status=".*",
        counters=r"restarts \+1.*",
    ),
    Fault(
        "engine killed four times",
        _kill_four_times,
        Loses.SERVICE,
        exit_status="70",
        counters=r"engine-died \+4, restarts \+1",
        also=_earlier_failures_are_reported,
    ),
    Fault(
        "port taken for 3 s",
        _steal_port,
        Loses.SERVICE,
        words="is taken by",
        exit_status="69.*",
        counters=r".*unavailable \+.*",
        prepare=_stop_unit,
    ),
    Fault(
        "memory limit too small",
        _too_little_memory,
        Loses.SERVICE,
        within=180,
        exit_status=".*71.*",
        counters=r"out-of-memory \+.*",
    ),
    Fault(
        "flags that vLLM refuses for this model, then corrected",
        _refused_flags,
        Loses.SERVICE,
        within=180,
        exit_status="78",
        counters=r"settings-refused \+1",
    ),
)
"""Every fault of docs/faults.md."""
