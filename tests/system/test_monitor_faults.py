"""Faults that the monitor survives on a booted machine."""

import json

import pytest
from fakes import Fakes
from waiting import until

from .conftest import Host
from .watching import HEALTH, METRICS, STORE, UNIT, get, one, said, sample


def test_no_instance_delays_the_answers_for_others(fakes: Fakes, host: Host) -> None:
    modes = ("good", "error", "garbage", "endless", "never")
    for mode in modes:
        fakes.make(f"fake-{mode}", mode)
    fakes.start(*(f"fake-{mode}" for mode in modes))
    until(lambda: not one(host, "fake-never")["ready"], "the silent instance is not ready")
    status, _ = get(host)
    assert status == 503
    for mode in modes:
        found = one(host, f"fake-{mode}")
        print(f"{mode}: {found['reason']}")
        assert found["state"] == "ready"
        assert found["ready"] is (mode == "good")
    assert one(host, "fake-error")["reason"].endswith("/health answers 500")
    assert one(host, "fake-never")["reason"].endswith("does not answer within 3 s")
    for _ in range(20):
        took = host.machine.output("curl", "-s", "-o", "/dev/null", "-w", "%{time_total}", f"{HEALTH}/services")
        assert float(took) < 2  # 3 s if the monitor waited for the instance that does not answer


def test_monitor_port_in_use_is_reported_and_bound_later(monitor: Host) -> None:
    machine = monitor.machine
    machine.run("systemctl", "stop", UNIT)
    thief = ("systemd-run", "--unit=thief", "/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "9090")
    machine.run(*thief)
    until(
        lambda: machine.run("curl", "-s", "http://127.0.0.1:9090/", check=False).returncode == 0,
        "the other program answers",
    )
    machine.run("systemctl", "start", UNIT)
    assert get(monitor, "")[0] == 200
    text = machine.show(UNIT, "StatusText")["StatusText"]
    assert "metrics cannot be served on 127.0.0.1:9090" in text and "change METRICS_PORT" in text
    assert "another program has the port" in said(monitor)
    machine.run("systemctl", "stop", "thief")
    seconds = until(
        lambda: "build_info" in machine.run("curl", "-s", METRICS, check=False).stdout, "metrics are served"
    )
    print(f"served after {seconds:.0f} s")
    assert "cannot" not in machine.show(UNIT, "StatusText")["StatusText"]


def test_changed_ports_need_a_restart_and_a_late_address_is_bound(monitor: Host) -> None:
    machine = monitor.machine
    file = machine.inside("/etc/default/citadel-llm")
    before = file.read_text()
    try:
        file.write_text(before.replace("SERVER_IP=127.0.0.1", "SERVER_IP=10.99.0.1").replace("=8000", "=8001"))
        machine.run("systemctl", "daemon-reload")
        wanted = "SERVER_IP, HEALTH_PORT changed: systemctl restart citadel-llm-monitor"
        until(lambda: wanted in machine.show(UNIT, "StatusText")["StatusText"], "the status line asks for a restart")
        assert get(monitor, "")[0] == 200
        machine.run("systemctl", "restart", UNIT)
        assert "SERVER_IP in /etc/default/citadel-llm must be an address of this host" in said(monitor)
        machine.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
        until(lambda: "10.99.0.1:8001" in machine.output("ss", "-ltn"), "the new address is listened on")
    finally:
        file.write_text(before)
        machine.run("ip", "address", "del", "10.99.0.1/32", "dev", "lo", check=False)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", UNIT)
    assert get(monitor, "")[0] == 200


def test_equal_health_and_metrics_port_is_reported(monitor: Host) -> None:
    machine = monitor.machine
    file = machine.inside("/etc/default/citadel-llm")
    before = file.read_text()
    line = before.splitlines().index("METRICS_PORT=9090") + 1
    wanted = f"/etc/default/citadel-llm:{line}: METRICS_PORT=8000 is also the HEALTH_PORT (/etc/default/citadel-llm:"
    try:
        file.write_text(before.replace("METRICS_PORT=9090", "METRICS_PORT=8000"))
        machine.run("systemctl", "restart", UNIT)
        assert get(monitor, "")[0] == 200
        assert wanted in said(monitor) and wanted in machine.show(UNIT, "StatusText")["StatusText"]
        check = machine.run("citadel-llm", "check", "test", check=False)
        assert (check.returncode, f"host: {wanted}" in check.stderr) == (78, True), check.stderr
        doctor = machine.run("citadel-llm", "doctor", check=False)
        assert (doctor.returncode, wanted in doctor.stdout) == (1, True), doctor.stdout
    finally:
        file.write_text(before)
        machine.run("systemctl", "restart", UNIT)
    assert "build_info" in machine.output("curl", "-s", METRICS)


def test_a_damaged_store_is_moved_aside(monitor: Host) -> None:
    machine = monitor.machine
    machine.run("systemctl", "stop", UNIT)
    machine.write(STORE, "nonsense " * 1000)
    machine.run("systemctl", "start", UNIT)
    assert get(monitor, "")[0] == 200
    damaged = sorted(machine.inside(STORE).parent.glob("monitor.sqlite.damaged-*"))
    assert damaged[-1].read_text().startswith("nonsense")
    assert f"moved to {damaged[-1].name}" in said(monitor)


LOCK = """
import pathlib, sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
pathlib.Path("/run/locked").touch()
while pathlib.Path("/run/locked").exists():
    time.sleep(0.01)
database.execute("ROLLBACK")
"""
COUNT = """
import sqlite3, sys
rows = sqlite3.connect(sys.argv[1]).execute("SELECT SUM(count) FROM event WHERE instance = ?", sys.argv[2:])
print(rows.fetchone()[0])
"""


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_monitor_ended_during_a_write_loses_no_record(fakes: Fakes, host: Host, signal: str) -> None:
    """A lock on the database keeps the monitor in the middle of its first write."""
    machine, name = host.machine, f"past-{signal.lower()}"
    unit = fakes.make(name)
    fakes.start(name)
    until(lambda: one(host, name)["ready"], "the instance is ready")
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=USR1", unit)
    counted = f'failures_total{{result="engine-died",service="{name}"}}'
    machine.run("systemctl", "restart", UNIT)  # a stop writes the store
    until(lambda: sample(host, counted) == 1, "the failure is counted")
    machine.run("systemctl", "restart", UNIT)
    assert (sample(host, counted), host.python(COUNT, STORE, name)) == (1, "1")
    folder = machine.inside(STORE).parent
    damaged = set(folder.glob("*.damaged-*"))

    machine.run("systemctl", "stop", UNIT)
    machine.run("rm", "-f", "/run/locked")
    machine.run("systemd-run", "--unit=lock", "/opt/citadel/env/bin/python", "-I", "-c", LOCK, STORE)
    until(lambda: machine.inside("/run/locked").exists(), "the database is locked")
    machine.run("systemctl", "start", UNIT)
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=USR1", unit)
    pid = machine.show(UNIT, "MainPID")["MainPID"]
    # The second thread is the one that writes.
    until(lambda: len(list(machine.inside(f"/proc/{pid}/task").iterdir())) > 1, "the monitor writes")
    machine.run("systemctl", "kill", "--kill-whom=main", f"--signal={signal}", UNIT)
    machine.run("rm", "/run/locked")
    until(lambda: machine.show(UNIT, "MainPID")["MainPID"] not in (pid, "0"), "systemd has restarted the monitor")
    machine.run("systemctl", "start", UNIT)  # waits until it is ready
    until(lambda: sample(host, counted) == 2, "the new failure is counted once")
    machine.run("systemctl", "restart", UNIT)
    assert host.python(COUNT, STORE, name) == "2"
    assert set(folder.glob("*.damaged-*")) == damaged
    assert "Traceback" not in said(host)


def test_the_report_reads_the_store_of_a_killed_monitor(monitor: Host) -> None:
    """As a user without write access; the killed monitor leaves its write-ahead log."""
    machine = monitor.machine
    machine.run("systemctl", "restart", UNIT)
    wal = machine.inside(f"{STORE}-wal")
    until(wal.exists, "the log of the database exists")
    machine.run("systemctl", "mask", "--runtime", UNIT)
    try:
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT)
        until(lambda: machine.show(UNIT, "MainPID")["MainPID"] == "0", "the monitor has ended")
        machine.run("systemctl", "stop", UNIT)
        assert wal.exists()
        for user in ("nobody", "root"):
            report = machine.output("runuser", "-u", user, "--", "citadel-llm", "report", "--json")
            assert json.loads(report)["instances"], user
        machine.inside(f"{STORE}-shm").unlink()
        machine.output("runuser", "-u", "nobody", "--", "citadel-llm", "report", "--json")
    finally:
        machine.run("systemctl", "unmask", "--runtime", UNIT)
        machine.run("systemctl", "start", UNIT)


def test_monitor_reports_and_survives_a_full_disk(monitor: Host) -> None:
    machine = monitor.machine
    folder = STORE.rpartition("/")[0]
    machine.run("systemctl", "stop", UNIT)
    machine.run("mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", folder)
    try:
        machine.run("chown", "citadel-llm-monitor:", folder)
        machine.run("sh", "-c", f"dd if=/dev/zero of={folder}/full bs=4k 2>/dev/null; true")
        machine.run("systemctl", "start", UNIT)
        assert get(monitor)[0] == 200
        status, health = get(monitor, "")
        assert (status, "cannot be written" in health["reason"]) == (200, True), health
        assert "cannot be written" in machine.show(UNIT, "StatusText")["StatusText"]
        machine.run("rm", f"{folder}/full")
        until(lambda: get(monitor, "")[1]["reason"] == "", "the store is written again")
    finally:
        machine.run("systemctl", "stop", UNIT)
        machine.run("umount", folder)
        machine.run("systemctl", "start", UNIT)


def test_monitor_survives_loss_of_the_bus(fakes: Fakes, host: Host) -> None:
    machine = host.machine
    fakes.make("bus")
    fakes.start("bus")
    until(lambda: one(host, "bus")["ready"], "the instance is ready")
    machine.run("systemctl", "stop", "dbus.socket", "dbus.service")
    try:
        until(lambda: get(host, "")[0] == 503, "the monitor reports the lost bus")
        status, found = get(host)
        assert (status, {row["state"] for row in found["services"]}) == (503, {"unknown"})
        assert "bus" in get(host, "")[1]["reason"]
    finally:
        machine.run("systemctl", "start", "dbus.socket", "dbus.service")
    print(f"back after {until(lambda: get(host, '')[0] == 200, 'the monitor follows systemd again'):.1f} s")
    until(lambda: one(host, "bus")["ready"], "the instance is ready")
    machine.run("systemctl", "daemon-reexec")
    until(lambda: get(host, "")[0] == 200 and one(host, "bus")["ready"], "the instance is ready again")
    machine.run("systemctl", "stop", "citadel-llm@bus")
    until(lambda: one(host, "bus")["state"] == "stopped", "the instance is reported as stopped")
