"""The monitor on a booted machine: its answers and its counters."""

import json

import pytest
from fakes import Fakes
from waiting import until

from .conftest import Host
from .watching import HEALTH, METRICS, STORE, UNIT, get, one, said, sample


def test_package_enables_and_starts_the_monitor(host: Host) -> None:
    assert host.machine.output("systemctl", "is-enabled", UNIT) == "enabled"
    assert host.machine.show(UNIT, "ActiveState")["ActiveState"] == "active"


def test_monitor_runs_as_its_own_user_without_vllm(monitor: Host) -> None:
    machine = monitor.machine
    status, health = get(monitor, "")
    assert (status, health["status"], health["reason"]) == (200, "healthy", "")
    shown = machine.show(UNIT, "MainPID", "User", "StatusText")
    assert shown["User"] == "citadel-llm-monitor"
    assert shown["StatusText"].startswith("Serves 127.0.0.1:8000 and 127.0.0.1:9090, ")
    maps = machine.output("cat", f"/proc/{shown['MainPID']}/maps")
    assert "torch" not in maps and "vllm" not in maps
    page = machine.output("curl", "-si", "http://127.0.0.1:8000/")
    assert "content-security-policy: default-src 'none'" in page and "<html" in page


def test_monitor_reports_figures_of_a_real_instance(monitor: Host) -> None:
    machine = monitor.machine
    assert one(monitor, "test")["state"] == "stopped"
    machine.run("systemctl", "start", "citadel-llm@test")
    until(lambda: get(monitor)[0] == 200, "all instances are ready")
    assert get(monitor)[1]["status"] == "healthy"
    until(lambda: one(monitor, "test")["cpu_cores"] is not None, "the use of the CPU is measured")
    status, test = get(monitor, "/services/test")
    print(test)
    assert (status, test["state"], test["ready"], test["port"]) == (200, "ready", True, 11499)
    assert test["pid"] == int(machine.show("citadel-llm@test", "MainPID")["MainPID"])
    assert 1 < test["startup_seconds"] < 60 and test["tasks"] > 3
    assert 2e8 < test["memory_bytes"] < test["memory_limit_bytes"] == 4 * 2**30
    assert 0 <= test["cpu_cores"] <= 2.1 and test["cpu_limit_cores"] == 2
    assert test["since"].endswith("Z") and test["reason"].startswith("Ready")
    assert sample(monitor, 'ready{service="test"}') == 1
    assert sample(monitor, 'cpu_seconds_total{service="test"}') > 1
    machine.run("systemctl", "enable", "citadel-llm@test")
    machine.run("systemctl", "stop", "citadel-llm@test")
    until(lambda: get(monitor)[0] == 503, "an instance is not ready")
    assert one(monitor, "test")["state"] == "stopped"
    machine.run("systemctl", "disable", "citadel-llm@test")
    until(lambda: get(monitor)[0] == 200, "all instances are ready")
    assert sample(monitor, 'failures_total{result="signal",service="test"}') == 0, "a clean stop is no failure"


def test_failures_are_counted_once_and_survive_monitor_restarts(fakes: Fakes, host: Host) -> None:
    machine = host.machine
    unit = fakes.make("counted", RESTART_SEC=0.2)
    fakes.start("counted")
    before = machine.show(unit, "MainPID")["MainPID"]
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit)
    seconds = until(
        lambda: sample(host, 'failures_total{result="signal",service="counted"}') == 1, "the failure is counted"
    )
    print(f"a killed main process is counted after {seconds:.1f} s")
    until(lambda: one(host, "counted")["ready"], "the instance is ready")
    found = one(host, "counted")
    assert str(found["pid"]) not in (before, "None")
    assert (found["restarts"], found["last_failure"]["kind"]) == (1, "signal")
    assert found["last_failure"]["reason"] == "the main process was killed by SIGKILL"
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=USR1", unit)
    died = 'failures_total{result="engine-died",service="counted"}'
    seconds = until(lambda: sample(host, died) == 1, "the recovery is counted")
    print(f"a recovery by the main process is counted after {seconds:.1f} s")
    assert one(host, "counted")["startup_seconds"] == 1.5
    cpu = sample(host, 'cpu_seconds_total{service="counted"}')
    machine.run("systemctl", "restart", UNIT)
    until(lambda: one(host, "counted")["ready"], "the instance is ready")
    found = one(host, "counted")
    assert (found["ready"], found["restarts"], found["last_failure"]["kind"]) == (True, 1, "engine-died")
    assert sample(host, died) == sample(host, 'failures_total{result="signal",service="counted"}') == 1
    assert sample(host, 'cpu_seconds_total{service="counted"}') >= cpu > 0
    assert sample(host, 'last_exit_code{service="counted"}') == 137
    machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    until(lambda: machine.run("curl", "-s", HEALTH, check=False).returncode == 0, "the monitor answers")
    until(lambda: one(host, "counted")["ready"], "the instance is ready")
    assert one(host, "counted")["restarts"] == 1
    until(lambda: (one(host, "counted")["uptime_ratio"] or 0) > 0.5, "the uptime is known")
    for user in ("root", "nobody"):
        report = machine.output("runuser", "-u", user, "--", "citadel-llm", "report", "--days", "1", "--json")
        (counted,) = (row for row in json.loads(report)["instances"] if row["name"] == "counted")
        assert (counted["restarts"], counted["failures"]) == (1, {"engine-died": 1, "signal": 1})
        assert counted["starts"] == 2 and 0 < counted["memory_peak_bytes"] < counted["memory_limit_bytes"]
    print(machine.output("citadel-llm", "report"))


def test_oom_killed_main_process_is_counted_once(fakes: Fakes, host: Host) -> None:
    """With OOMPolicy=continue systemd reports the result "signal"."""
    machine = host.machine
    unit = fakes.make("greedy", RESTART_SEC=0.2, MEMORY_LIMIT_GB=0.2)
    fakes.start("greedy")
    until(lambda: one(host, "greedy")["ready"], "the instance is ready")
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=USR2", unit)
    until(lambda: one(host, "greedy")["restarts"] == 1, "the restart is counted")
    failures = {
        kind: sample(host, f'failures_total{{result="{kind}",service="greedy"}}')
        for kind in ("out-of-memory", "signal")
    }
    # Counted once, and as out-of-memory if the cgroup outlives the process long enough for the count to be read.
    assert sum(failures.values()) == 1, failures
    print(f"killed at the memory limit, counted as {[kind for kind in failures if failures[kind]]}")


def test_monitor_exposes_no_secret(fakes: Fakes, host: Host) -> None:
    machine = host.machine
    machine.write("/etc/citadel-llm/monitor.key", "secret-key-of-the-test\n")
    machine.run("chmod", "0600", "/etc/citadel-llm/monitor.key")
    fakes.make("keyed", "telling", API_KEY_FILE="/etc/citadel-llm/monitor.key")
    fakes.start("keyed")
    until(lambda: one(host, "keyed")["ready"], "the instance is ready")
    pid = machine.show("citadel-llm@keyed", "MainPID")["MainPID"]
    has = machine.output("sh", "-c", f"cat /proc/{pid}/root/run/credentials/citadel-llm@keyed.service/api-key")
    assert has == "secret-key-of-the-test", "the service has the key"
    # Wait until the monitor has written its store.
    machine.run("sleep", "11")
    urls = (f"{HEALTH}/services", f"{HEALTH}/services/keyed", f"{HEALTH}/targets", METRICS)
    told = {url: machine.output("curl", "-s", url) for url in urls}
    files = machine.inside(STORE).parent.glob("monitor.sqlite*")
    told["the store"] = b"".join(file.read_bytes() for file in files).decode("latin-1")
    assert not [where for where, text in told.items() if "keyed" not in text], "each place mentions the instance"
    told |= {"the journal": said(host), "status": machine.output("systemctl", "show", UNIT)}
    assert "following systemd" in told["the journal"]
    assert not [where for where, text in told.items() if "secret-key" in text]


def test_bad_requests_get_a_plain_answer(monitor: Host) -> None:
    for path in ("/services/../x", "/services/none", "/services/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/services/", "/x"):
        status, answer = get(monitor, path)
        assert (status, set(answer)) == (404, {"detail"}), path
    machine = monitor.machine
    long = machine.output("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{HEALTH}/{'x' * 100000}")
    # A request that arrives in one piece has an unknown path; otherwise it exceeds the size limit.
    assert long in ("400", "404")
    kind = "%{content_type}"
    for path in (f"{HEALTH}/services", METRICS, "http://127.0.0.1:8000/"):
        head = machine.output("curl", "-sI", "-m", "5", "-w", "%{http_code} %{size_download}", path).splitlines()
        assert head[-1] == "200 0" and any(line.lower().startswith("content-length: ") for line in head), head
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    assert "openmetrics" in machine.output("curl", "-s", "-o", "/dev/null", "-w", kind, "-H", accept, METRICS)


@pytest.mark.parametrize("edit", ["PORT=$nonsense", "PORT=12999\nMAX_TASKS=999"])
def test_edited_settings_do_not_change_the_probed_address(fakes: Fakes, host: Host, edit: str) -> None:
    machine = host.machine
    fakes.make("edited")
    fakes.start("edited")
    until(lambda: one(host, "edited")["ready"], "the instance is ready")
    port = one(host, "edited")["port"]
    file = machine.inside("/etc/default/citadel-llm-edited")
    file.write_text(f"{file.read_text()}{edit}\n")
    machine.run("systemctl", "daemon-reload")
    limit = "999" if "999" in edit else "1000"
    until(lambda: one(host, "edited")["tasks_limit"] == int(limit), "the new limit is reported")
    # Long enough for another probe; a restarted monitor, which has not seen the start, knows the address too.
    machine.run("sleep", "4")
    for _ in range(2):
        found = one(host, "edited")
        assert (found["ready"], found["port"]) == (True, port), found
        machine.run("systemctl", "restart", UNIT)
        until(lambda: one(host, "edited")["ready"], "the instance is ready")
