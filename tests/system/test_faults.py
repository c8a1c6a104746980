"""Every fault that can be injected on a booted host: time until found, exit status, counter, time until serving again.

docs/faults.md contains the table that these tests print.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from waiting import until

from .conftest import SUMMARY, TINY_MODEL, Host

PORT = 11570
UNIT = "citadel-llm@faulty"
SETTINGS: dict[str, str | float] = {
    "MODEL": TINY_MODEL, "PORT": PORT, "KV_CACHE_GB": 0.25, "RESTART_SEC": 1,
    "START_TIMEOUT_SEC": 20, "HANG_TIMEOUT_SEC": 20,
}  # fmt: skip
ASK = (
    "curl -s -o /dev/null --max-time {seconds} -w '%{{http_code}}' -H 'Content-Type: application/json' "
    '-d \'{{"prompt": "x", "max_tokens": {tokens}, "ignore_eos": true}}\' '
    f"http://127.0.0.1:{PORT}/v1/completions"
)
METRIC = re.compile(r'^citadel_llm_service_(restarts|failures)_total\{(?:result="([a-z-]+)",)?service="faulty"\} (\S+)')


class Row(NamedTuple):
    """One fault and its outcome; times in seconds since the fault."""

    fault: str
    found: float | None
    words: str
    exit_status: str
    counters: str
    serving: float | None

    def __str__(self) -> str:
        found, serving = (
            "not noticed, nothing lost" if value is None else f"{value:.1f} s" for value in (self.found, self.serving)
        )
        return f"| {self.fault} | {found} | {self.words} | {self.exit_status} | {self.counters} | {serving} |"


class Faults:
    """Injects faults into an instance that the monitor watches."""

    def __init__(self, host: Host) -> None:
        self.host, self.machine = host, host.machine

    def restart(self, **settings: str | float) -> None:
        """Restart the instance so that no earlier failure counts."""
        self.host.settings("faulty", **{**SETTINGS, **settings})
        self.machine.run("systemctl", "stop", UNIT)
        self.machine.run("systemctl", "reset-failed", UNIT, check=False)
        self.machine.run("systemctl", "start", UNIT)

    def counters(self) -> dict[str, float]:
        """The monitor's counters of the instance."""
        text = self.machine.output("curl", "-s", "--max-time", "10", "http://127.0.0.1:9090/metrics")
        found = filter(None, map(METRIC.match, text.splitlines()))
        return {match[2] or match[1]: float(match[3]) for match in found}

    def seen(self, fault: str, inflict: Callable[[], object], *, load: bool = False, within: float = 60) -> Row:
        """Inject a fault, wait until the model answers again, and collect messages and counters."""
        before = self.counters()
        if load:
            self.machine.run("sh", "-c", f"{ASK.format(seconds=120, tokens=1900)} >/dev/null 2>&1 & sleep 0.5")
        begin = time.time()
        inflict()
        served = self.serving(begin, within)
        found, words, status, reason = self.journal(begin)
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
        row = Row(fault, found, words, status, counted, served)
        print(row)
        return row

    def serving(self, begin: float, within: float) -> float:
        """Time until the instance answers one of its requests, each with a timeout of a second."""
        while True:
            status = self.machine.run("sh", "-c", ASK.format(seconds=1, tokens=1), check=False).stdout
            took = time.time() - begin
            if status == "200":
                return took
            assert took < within, f"not serving after {within} s: {self.machine.show(UNIT, 'StatusText')}"
            time.sleep(0.1)

    def journal(self, begin: float) -> tuple[float | None, str, str, str]:
        """Time and text of the first report of the fault, exit status of the main process if it ended, and the reason
        that the main process reported, if any.
        """
        self.machine.run("journalctl", "--sync")
        lines = self.machine.output("journalctl", f"--unit={UNIT}", f"--since=@{begin:.6f}", "-o", "json").splitlines()
        entries = [json.loads(line) for line in lines]
        told = [entry for entry in entries if "CITADEL_REASON" in entry or "EXIT_STATUS" in entry]
        watchdog = [entry for entry in entries if "Watchdog timeout" in str(entry["MESSAGE"])]
        ends = [entry["EXIT_STATUS"] for entry in told if "EXIT_STATUS" in entry]
        if not told:
            return None, "", "none", ""
        first = (watchdog or told)[0]
        reason = first.get("CITADEL_REASON", "")
        assert not reason or first["CITADEL_SERVICE"] == "faulty"
        return (
            int(first["__REALTIME_TIMESTAMP"]) / 1e6 - begin,
            first["MESSAGE"].split(";")[0].removeprefix(f"{UNIT}.service: "),
            ", ".join(ends) or "none",
            reason,
        )

    def kill(self, signal: str, process: str) -> Callable[[], object]:
        """Send a signal to the processes whose title begins with `process`."""
        return lambda: self.machine.run("pkill", f"-{signal}", "-u", "agent0", "-f", f"^{process}")

    def kill_main(self, signal: str) -> Callable[[], object]:
        """Send a signal to the unit's main process."""
        return lambda: self.machine.run("systemctl", "kill", "--kill-who=main", f"--signal={signal}", UNIT)


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    SUMMARY.append("| failure | found after | message | exit status | counters of the monitor | serving again after |")
    SUMMARY.append("|---|---|---|---|---|---|")
    SUMMARY.extend(map(str, rows))


@pytest.fixture
def faults(host: Host) -> Faults:
    return Faults(host)


@pytest.mark.parametrize("process", ["VLLM::EngineCore", "VLLM::APIServer"])
def test_a_killed_process_is_replaced_without_systemd(faults: Faults, table: list[Row], process: str) -> None:
    faults.restart()
    row = faults.seen(f"SIGKILL of {process}", faults.kill("KILL", process))
    table.append(row)
    assert row.found is not None and row.found < 2
    assert (row.exit_status, row.counters) == ("none", "engine-died +1")


def test_killed_fork_server_does_not_interrupt_serving(faults: Faults, table: list[Row]) -> None:
    faults.restart()
    table.append(faults.seen("SIGKILL of VLLM::ForkServer", faults.kill("KILL", "VLLM::ForkServer")))
    table.append(
        faults.seen("SIGKILL of multiprocessing's resource tracker", faults.kill("KILL", ".*resource_tracker"))
    )
    # The next engine comes from a new fork server, which has begun to import vLLM meanwhile.
    time.sleep(12)
    table.append(faults.seen("SIGKILL of VLLM::EngineCore 12 s later", faults.kill("KILL", "VLLM::EngineCore")))
    assert table[-1].counters == "engine-died +1"


@pytest.mark.parametrize("process", ["VLLM::EngineCore", "VLLM::APIServer"])
def test_stopped_process_is_replaced_as_hung(faults: Faults, table: list[Row], process: str) -> None:
    faults.restart()
    row = faults.seen(f"SIGSTOP of {process} under load", faults.kill("STOP", process), load=True)
    table.append(row)
    assert row.found is not None and row.found < 20
    assert (row.exit_status, row.counters) == ("none", "engine-hung +1")


HANGING = """
import os, time
from vllm.v1.sample.logits_processor import LogitsProcessor

MARK = "/var/cache/citadel-llm/faulty/hang"

class Hanging(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory):
        pass

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        if os.path.exists(MARK):
            with open(MARK) as file:
                how = file.read().strip()
            os.unlink(MARK)
            if how == "grow":
                self.held = [b"x" * 2**24 for _ in range(1000)]
            while True:
                time.sleep(3600) if how == "sleep" else None
        return logits
"""


Told = Callable[[str], None]


@pytest.fixture
def told(faults: Faults) -> Iterator[Told]:
    """Makes the real engine hang or grow in the middle of a step; for an instance with the VLLM_ARGS of TOLD."""
    file, mark = "/opt/citadel/env/lib/python3.11/site-packages/hanging.py", "/var/cache/citadel-llm/faulty/hang"
    faults.machine.write(file, HANGING)

    def tell(how: str) -> None:
        begin = f"echo {how} >{mark}; chown agent0: {mark}"
        faults.machine.run("sh", "-c", f"{begin}; {ASK.format(seconds=60, tokens=5)} >/dev/null 2>&1 & sleep 1")

    yield tell
    faults.machine.inside(file).unlink()


TOLD = {"VLLM_ARGS": "'--logits-processors hanging:Hanging'"}


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_hung_engine_is_replaced_while_health_answers(faults: Faults, table: list[Row], told: Told, how: str) -> None:
    """The real engine hangs in the middle of a step while the monitor continues to probe /health."""
    faults.restart(**TOLD)

    def hang() -> None:
        told(how)
        url = f"127.0.0.1:{PORT}/health"
        assert faults.machine.output("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url) == "200"

    row = faults.seen(f"engine hangs in a step ({how}s), /health answers", hang)
    table.append(row)
    # A sleeping engine is found sooner if its threads use no CPU time and read nothing; both within HANG_TIMEOUT_SEC.
    assert "no process works on" in row.words or "no token has come" in row.words
    assert row.found is not None and row.found < 30
    assert (row.exit_status, row.counters) == ("none", "engine-hung +1")


def test_engine_beyond_memory_limit_is_replaced(faults: Faults, table: list[Row], told: Told) -> None:
    """The kernel kills the engine and no other process of the service."""
    faults.restart(**TOLD, MEMORY_LIMIT_GB=2)
    row = faults.seen("engine grows beyond MEMORY_LIMIT_GB", lambda: told("grow"))
    table.append(row)
    assert "ended: out of memory, MEMORY_LIMIT_GB=2 is too little" in row.words
    assert (row.exit_status, row.counters) == ("none", "out-of-memory +1")
    metrics = faults.machine.output("curl", "-s", "http://127.0.0.1:9090/metrics")
    assert 'citadel_llm_service_oom_kills_total{service="faulty"} 1.0' in metrics


def test_a_killed_main_process_is_restarted_by_systemd(faults: Faults, table: list[Row]) -> None:
    faults.restart()
    row = faults.seen("SIGKILL of the main process", faults.kill_main("KILL"))
    table.append(row)
    assert "restarts +1" in row.counters and "signal +1" in row.counters


def test_watchdog_restarts_a_stopped_main_process(faults: Faults, table: list[Row]) -> None:
    faults.restart()

    def stop() -> None:
        faults.kill_main("STOP")()
        # The model answers meanwhile.
        until(lambda: faults.machine.show(UNIT, "NRestarts")["NRestarts"] != "0", "the watchdog ends the main process")

    row = faults.seen("SIGSTOP of the main process", stop, within=150)
    table.append(row)
    assert "atchdog" in row.words and "restarts +1" in row.counters


def test_crash_loop_is_handed_over_to_systemd(faults: Faults, table: list[Row]) -> None:
    faults.restart()

    def kill_four_times() -> None:
        for _ in range(3):
            faults.kill("KILL", "VLLM::EngineCore")()
            time.sleep(0.5)
            faults.serving(time.time(), 60)
            wait_until_ready(faults.host)
        faults.kill("KILL", "VLLM::EngineCore")()

    row = faults.seen("engine killed four times", kill_four_times)
    table.append(row)
    assert (row.exit_status, row.counters) == ("70", "engine-died +4, restarts +1")
    assert "and 3 before it in the last 300 s" in faults.host.journal("faulty")


def wait_until_ready(host: Host) -> None:
    """Wait until the main process reports Ready; a waiting client may be answered shortly before."""
    until(lambda: host.machine.show(UNIT, "StatusText")["StatusText"].startswith("Ready"), "the instance is ready")


def test_port_in_use_is_reported_and_retried(faults: Faults, table: list[Row]) -> None:
    faults.restart()
    faults.machine.run("systemctl", "stop", UNIT)
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {PORT})); time.sleep(3)"

    def steal() -> None:
        faults.machine.run("systemd-run", "--quiet", "--collect", "python3", "-c", listen)
        faults.machine.run("sh", "-c", f"until ss -ltn | grep -q :{PORT}; do sleep 0.1; done", timeout=10)
        faults.machine.run("systemctl", "start", UNIT, check=False)

    row = faults.seen("port taken for 3 s", steal)
    table.append(row)
    assert row.exit_status.startswith("69") and "unavailable" in row.counters
    assert "is taken by" in row.words


def test_too_small_memory_limit_is_reported_as_out_of_memory(faults: Faults, table: list[Row]) -> None:
    """The cache is larger than the limit and set by a flag that the check ignores."""
    faults.restart()
    small: dict[str, str | float] = {"MEMORY_LIMIT_GB": 1, "VLLM_ARGS": "'--kv-cache-memory-bytes 4000000000'"}

    def starve() -> None:
        faults.host.settings("faulty", **{**SETTINGS, **small})
        assert faults.machine.run("systemctl", "restart", UNIT, check=False).returncode != 0
        assert "MEMORY_LIMIT_GB=1 is too little" in faults.machine.show(UNIT, "StatusText")["StatusText"]
        faults.host.settings("faulty", **SETTINGS)

    row = faults.seen("memory limit too small", starve, within=90)
    table.append(row)
    assert "71" in row.exit_status and "out-of-memory +" in row.counters


def test_refused_settings_are_not_retried(faults: Faults, table: list[Row]) -> None:
    faults.restart()

    def spoil() -> None:
        faults.host.settings("faulty", **{**SETTINGS, "VLLM_ARGS": "'--max-num-seqs 300 --max-num-batched-tokens 200'"})
        assert faults.machine.run("systemctl", "restart", UNIT, check=False).returncode != 0
        shown = faults.machine.show(UNIT, "ActiveState", "NRestarts", "StatusText")
        assert (shown["ActiveState"], shown["NRestarts"]) == ("failed", "0"), shown
        assert "vLLM refuses these settings" in shown["StatusText"], shown
        faults.host.settings("faulty", **SETTINGS)
        faults.machine.run("systemctl", "start", UNIT)

    row = faults.seen("flags that vLLM refuses for this model, then corrected", spoil, within=90)
    table.append(row)
    assert (row.exit_status, row.counters) == ("78", "settings-refused +1")
