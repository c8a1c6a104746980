"""The generator on a booted host: hostile files, systemd's own parser, run time and memory."""

import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import Hostile

from .conftest import TINY_MODEL, Host

GENERATOR = "/lib/systemd/system-generators/citadel-llm-generator"
DROP_IN = "50-settings.conf"
SAMPLE, SEED = 400, 66
TIMES = """
import os, subprocess, sys, time
for _ in range(21):
    subprocess.run(["rm", "-rf", "/run/timed"], check=True)
    start = time.perf_counter()
    program = subprocess.Popen([sys.argv[1], "/run/timed"], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(program.pid, 0)
    assert status == 0
    print((time.perf_counter() - start) * 1000, (usage.ru_utime + usage.ru_stime) * 1000)
"""
PEAK = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run([sys.argv[1], "/run/timed"], check=True, stderr=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


@pytest.fixture
def extra(host: Host) -> Iterator[Path]:
    """The machine's /etc/default; files that a test adds are removed after it."""
    defaults = host.machine.inside("/etc/default")
    before = set(defaults.iterdir())
    yield defaults
    for file in set(defaults.iterdir()) - before:
        file.unlink()
    host.machine.run("rm", "-rf", "/run/timed")
    host.machine.run("systemctl", "daemon-reload")


def cursor(host: Host) -> str:
    return host.machine.output("journalctl", "-n0", "--show-cursor", "-q").removeprefix("-- cursor: ")


def said_by_systemd(host: Host, since: str) -> str:
    host.machine.run("journalctl", "--sync")
    return host.machine.output("journalctl", "-q", "-o", "cat", f"--after-cursor={since}", "_PID=1")


def directives(host: Host, name: str) -> dict[str, str]:
    """The directives that the generator wrote for an instance; a repeated directive has its last value."""
    file = host.machine.inside(f"/run/systemd/generator/citadel-llm@{name}.service.d/{DROP_IN}")
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)


def test_systemd_applies_every_drop_in_as_written(host: Host, extra: Path) -> None:
    hostile = Hostile(SEED)
    names = [f"h{number}" for number in range(SAMPLE)]
    for name in names:
        (extra / f"citadel-llm-{name}").write_bytes(hostile.settings())
    for _ in range(20):
        (extra / f"citadel-llm-{hostile.name()}").write_bytes(hostile.settings())
    sound = host.machine.show("citadel-llm@test", "ExecStart", "ExecStartPre", "Environment", "Alias", "MemoryMax")
    since = cursor(host)
    host.machine.run("systemctl", "daemon-reload")
    properties = ("Id", "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "Restart", "User", "ExecStart", "ExecStartPre",
                  "Environment", "LoadState", "DropInPaths", "Requires")  # fmt: skip
    answer = host.machine.output(
        "systemctl", "show", f"--property={','.join(properties)}", *(f"citadel-llm@{name}" for name in names)
    )
    shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in answer.split("\n\n")]
    assert [unit["Id"] for unit in shown] == [f"citadel-llm@{name}.service" for name in names]
    refused = 0
    for name, unit in zip(names, shown, strict=True):
        meant = directives(host, name)
        assert unit["LoadState"] == "loaded"
        assert unit["MemoryMax"] == meant["MemoryMax"], name
        assert unit["TasksMax"] == meant["TasksMax"], name
        assert unit["Restart"] == meant["Restart"], name
        assert unit["User"] == "agent0"
        assert _seconds(unit["CPUQuotaPerSecUSec"]) == pytest.approx(int(meant["CPUQuota"][:-1]) / 100), name
        assert unit["DropInPaths"].split() == [f"/run/systemd/generator/citadel-llm@{name}.service.d/{DROP_IN}"]
        assert unit["Environment"] == sound["Environment"]
        assert "touch" not in unit.get("ExecStartPre", "")
        # The command names the instance and is otherwise the template's.
        assert unit["ExecStart"].split(";")[1].split()[:-1] == sound["ExecStart"].split(";")[1].split()[:-1]
        assert set(meant.get("Requires", "").split()) <= set(unit["Requires"].split())
        refused += "is refused" in host.machine.inside(unit["DropInPaths"]).read_text()
    complaints = [line for line in said_by_systemd(host, since).splitlines() if "citadel-llm@" in line]
    assert not [line for line in complaints if DROP_IN in line], complaints[:5]
    verified = host.machine.run("systemd-analyze", "verify", *(f"citadel-llm@{name}.service" for name in names[:100]),
                                check=False)  # fmt: skip
    assert DROP_IN not in verified.stderr, verified.stderr[:2000]
    assert host.machine.show("citadel-llm@test", "MemoryMax")["MemoryMax"] == sound["MemoryMax"]
    print(f"{SAMPLE} hostile files of seed {SEED} through systemd's parser, {refused} of them refused, no complaint")
    assert SAMPLE * 0.2 < refused < SAMPLE * 0.9


def _seconds(span: str) -> float:
    """A time span as systemctl prints it: 1min 30s, 2s, 500ms."""
    units = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)(us|ms|min|s|h)", span))


def test_daemon_reload_with_bad_files_keeps_running_instances(host: Host, extra: Path) -> None:
    host.settings("runs", MODEL=TINY_MODEL, PORT=11571, MEMORY_LIMIT_GB=3, KV_CACHE_GB=0.25)
    host.machine.run("systemctl", "start", "citadel-llm@runs")
    wanted = ("MainPID", "ActiveState", "MemoryMax", "MemoryHigh", "CPUQuotaPerSecUSec", "TasksMax", "NRestarts")
    before = host.machine.show("citadel-llm@runs", *wanted)
    assert before["ActiveState"] == "active"
    drop_in = directives(host, "runs")
    good = f"MODEL={TINY_MODEL}\nKV_CACHE_GB=0.25\n"
    for name, text in {
        "ring-a": good + "PORT=11572\nREQUIRES=ring-b\nAFTER=ring-b\nMEMORY_LIMIT_GB=1\n",
        "ring-b": good + "PORT=11573\nREQUIRES=ring-a\nAFTER=ring-a\nMEMORY_LIMIT_GB=2\n",
        "same-port": good + "PORT=11571\nMEMORY_LIMIT_GB=1.5\n",
        "bad": good + "PORT=11574\nMEMORY_LIMIT_GB=4\\nExecStartPre=/bin/sh\n",
        "lost": good + "PORT=11575\nREQUIRES=nobody\n",
    }.items():
        (extra / f"citadel-llm-{name}").write_text(text)
    host.machine.run("systemctl", "daemon-reload")
    assert host.machine.show("citadel-llm@runs", *wanted) == before
    assert directives(host, "runs") == drop_in
    limits = {
        name: int(directives(host, name)["MemoryMax"]) / 2**30 for name in ("ring-a", "ring-b", "same-port", "bad")
    }
    assert limits == {"ring-a": 1, "ring-b": 2, "same-port": 1.5, "bad": 4}
    # Attempts to start them, or all instances, do not affect the running one.
    for unit, words in {
        "citadel-llm@ring-a": "cyclic",
        "citadel-llm@same-port": "",
        "citadel-llm@bad": "",
        "citadel-llm@lost": "dependency",
    }.items():
        start = host.machine.run("systemctl", "start", unit, check=False)
        assert start.returncode != 0, unit
        assert words in start.stderr.lower(), start.stderr
    shown = host.machine.show("citadel-llm@same-port", "ExecMainStatus", "StatusText")
    assert shown["ExecMainStatus"] == "69", shown
    assert "leave out the backslash" in host.machine.show("citadel-llm@bad", "StatusText")["StatusText"]
    host.machine.run("systemctl", "start", "citadel-llm.target")
    assert host.machine.show("citadel-llm@runs", *wanted) == before
    for name in ("same-port", "bad", "lost", "nobody"):
        host.machine.run("systemctl", "stop", f"citadel-llm@{name}", check=False)
        host.machine.run("systemctl", "reset-failed", f"citadel-llm@{name}", check=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["chmod", "0600"], "chmod 644 it"),
        (["chmod", "0666"], "is writable by other users"),
        (["chmod", "0664"], "is writable by other users"),
        (["chown", "nobody"], "belongs to user number 65534"),
        (["chown", "agent0"], "belongs to user number"),
        (["ln", "-sf", "/usr/share/citadel-llm/models/test/config.json"], "is a symbolic link"),
        (["sh", "-c", 'rm "$0"; mkfifo -m 644 "$0"'], "is not a regular file"),
    ],
)
def test_start_refuses_file_with_wrong_mode_owner_or_type(
    host: Host, extra: Path, change: list[str], words: str
) -> None:
    file = "/etc/default/citadel-llm-mode"
    (extra / "citadel-llm-mode").write_text(f"MODEL={TINY_MODEL}\nPORT=11576\nKV_CACHE_GB=0.25\nMEMORY_LIMIT_GB=1\n")
    host.machine.run(*change, file)
    host.machine.run("systemctl", "daemon-reload")
    start = host.machine.run("systemctl", "start", "citadel-llm@mode", check=False)
    shown = host.machine.show("citadel-llm@mode", "ExecMainStatus", "StatusText", "MemoryMax")
    host.machine.run("systemctl", "reset-failed", "citadel-llm@mode", check=False)
    assert start.returncode != 0
    assert shown["ExecMainStatus"] == "78", shown
    assert words in shown["StatusText"], shown
    # Root can read a file that the service cannot; a file that others can write is ignored.
    assert int(shown["MemoryMax"]) == (2**30 if change[1] == "0600" else 4 * 2**30)


@pytest.mark.parametrize("name", ["-rf", "--check", "%n", "..", "a\\x2fb", "$(id)"])
def test_hostile_instance_name_is_refused_and_gets_no_drop_in(host: Host, extra: Path, name: str) -> None:
    """Even with a file of that name: no drop-in, a start that fails with status 78, and no command-line option."""
    (extra / f"citadel-llm-{name}").write_text(f"MODEL={TINY_MODEL}\nPORT=11577\nKV_CACHE_GB=0.25\nMEMORY_LIMIT_GB=1\n")
    host.machine.run("systemctl", "daemon-reload")
    unit = f"citadel-llm@{name}.service"
    assert not host.machine.inside(f"/run/systemd/generator/{unit}.d").exists()
    done = host.machine.run("systemctl", "start", "--", unit, check=False)
    assert done.returncode != 0
    if "not a valid unit name" not in done.stderr and "Invalid unit name" not in done.stderr:
        shown = host.machine.show(unit, "ExecMainStatus", "StatusText", "MemoryMax")
        assert (shown["ExecMainStatus"], int(shown["MemoryMax"])) == ("78", 4 * 2**30), shown
        assert "is not an instance name" in shown["StatusText"], shown
        host.machine.run("systemctl", "reset-failed", "--", unit, check=False)
    for command in ("show", "start", "check"):
        said = host.machine.run("citadel-llm", command, "--", name, check=False)
        assert (said.returncode, "there is no instance" in said.stderr) == (4, True), said.stderr
    said = host.machine.run("citadel-llm", "create", "--model", TINY_MODEL, "--", name, check=False)
    assert said.returncode in (1, 2, 78) and "is not an instance name" in said.stderr, said.stderr


def test_killed_generator_leaves_no_partial_drop_in(host: Host, extra: Path) -> None:
    for number in range(500):
        (extra / f"citadel-llm-k{number}").write_text(f"MODEL=/srv/m\nPORT=11500\nMAX_TASKS={100 + number}\n")
    host.machine.run(GENERATOR, "/run/timed")
    whole = {str(file.parent.name): file.read_bytes() for file in host.machine.inside("/run/timed").rglob("*.conf")}
    assert len(whole) >= 500
    counts = []
    for attempt in range(20):
        host.machine.run("rm", "-rf", "/run/timed")
        host.machine.run("timeout", "-s", "KILL", f"{0.03 + attempt * 0.004:.3f}", GENERATOR, "/run/timed", check=False)
        found = list(host.machine.inside("/run/timed").rglob("*.conf"))
        assert all(file.read_bytes() == whole[file.parent.name] for file in found)
        counts.append(len(found))
    print(f"drop-ins of {len(whole)} after a kill: {counts}")
    assert any(0 < count < len(whole) for count in counts)


def test_full_disk_loses_only_drop_ins_that_do_not_fit(host: Host, extra: Path) -> None:
    for number in range(200):
        (extra / f"citadel-llm-k{number}").write_text("MODEL=/srv/m\nPORT=11500\n")
    host.machine.run(GENERATOR, "/run/timed")
    whole = {str(file.parent.name): file.read_bytes() for file in host.machine.inside("/run/timed").rglob("*.conf")}
    host.machine.run("rm", "-rf", "/run/timed")
    host.machine.run("mkdir", "/run/timed")
    host.machine.run("mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", "/run/timed")
    try:
        done = host.machine.run(GENERATOR, "/run/timed")
        found = list(host.machine.inside("/run/timed").rglob("*"))
        files = [file for file in found if file.is_file()]
        assert 0 < len(files) < len(whole)
        assert all(file.name == DROP_IN and file.read_bytes() == whole[file.parent.name] for file in files)
        assert "cannot be written: No space left on device" in done.stderr
    finally:
        host.machine.run("umount", "/run/timed")


def test_generator_writes_to_kernel_log_at_daemon_reload(host: Host, extra: Path) -> None:
    log = host.machine.inside("/dev/kmsg")
    # The machine is a container without /dev/kmsg: a regular file in its place keeps the output.
    assert not log.exists()
    (extra / "citadel-llm-mode").write_text("PORT=1\n")
    log.touch()
    try:
        host.machine.run("systemctl", "daemon-reload")
        text = log.read_text()
    finally:
        log.unlink()
    assert "<4>citadel-llm-generator: /etc/default/citadel-llm-mode:1: PORT=1 is refused" in text
    assert len(text.splitlines()) <= 9


@pytest.mark.parametrize(("instances", "bound_ms"), [(100, 50), (2000, 500)])
def test_generator_run_time_is_within_bound(host: Host, extra: Path, instances: int, bound_ms: int) -> None:
    """The installed generator, started as systemd starts it; the time includes the start of the process."""
    for number in range(instances - len(list(extra.glob("citadel-llm-*")))):
        (extra / f"citadel-llm-t{number}").write_text(
            f"# A model\nMODEL=/srv/models/t{number}\nPORT={12000 + number}\nMEMORY_LIMIT_GB=8\nCPU_CORES=2.5\n"
            "AFTER=test\nVLLM_ARGS='--max-num-seqs 4'\nOMP_NUM_THREADS=2\n"
        )
    lines = host.machine.output("/usr/bin/python3", "-c", TIMES, GENERATOR).splitlines()
    taken, worked = zip(*(map(float, line.split()) for line in lines), strict=True)
    print(
        f"{instances} instances, 21 runs: median {statistics.median(taken):.0f} ms, minimum {min(taken):.0f} ms; "
        f"CPU time: median {statistics.median(worked):.0f} ms, minimum {min(worked):.0f} ms"
    )
    # Well above the bound, for a slow or busy test host: the benchmark checks the bound itself.
    assert min(worked) <= 4 * bound_ms


def test_worst_case_directory_stays_within_time_and_memory_bounds(host: Host, extra: Path) -> None:
    """The most and the largest files that the generator reads, with errors that are slow to handle."""
    worst = [f"K{number}_UNKNOWN_SETTING=1\n" for number in range(90)] + [f"VLLM_ARGS='{'--a b ' * 600}'\n"] * 9
    worst += ["OMP_X=1\n"] * 880
    for number in range(2100):
        (extra / f"citadel-llm-w{number}").write_text("".join(worst))
    start = time.monotonic()
    seconds, peak_mb = map(float, host.machine.output("/usr/bin/python3", "-c", PEAK, GENERATOR).split())
    written = sum(1 for _ in host.machine.inside("/run/timed").rglob("*.conf"))
    print(f"2,100 worst-case files: {seconds:.1f} s, peak {peak_mb:.0f} MB, {written} drop-ins")
    assert time.monotonic() - start < 80  # systemd ends a generator after 90 s
    assert peak_mb < 100
    assert written >= 2048
