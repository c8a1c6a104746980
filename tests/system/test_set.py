"""`citadel-llm set` and `unset` on a booted host: the file, systemd, and vLLM."""

import json
import time

from waiting import until

from .conftest import SUMMARY, TINY_MODEL, Host

PORT = 11595
FILE = "/etc/default/citadel-llm-edited"
COMMENTED = f"""\
# Of the web site
MODEL={TINY_MODEL}

# agreed with the network's owners
PORT={PORT}
KV_CACHE_GB=0.25

# OMP_NUM_THREADS=1
"""
MANY_TASKS = """
echo $$ >$0
for number in $(seq 70); do sleep 600 >/dev/null 2>&1 & done
"""
TOGETHER = """
for who in a b; do
    for number in $(seq 8); do citadel-llm set edited OMP_$who$number=$number >/dev/null || exit 1; done &
    all="$all $!"
done
for one in $all; do wait $one || exit 1; done
"""
KILLED = r"""
for number in $(seq 40); do
    /opt/citadel/env/bin/python -I -c '
import os, sys, threading, time
from hxp_enterprise_llm.cli import edit, files
from pathlib import Path
delay = int(sys.argv[1]) / 10000
threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), 9)), daemon=True).start()
for round in range(1000):
    value = str(round % 2) * 2000
    with files.locked(), edit.draft("edited", {"OMP_X": value}) as draft:
        files.put(draft, Path("/etc/default/citadel-llm-edited"))
' "$number"
    [ $? = 137 ] || exit 3
    sha256sum </etc/default/citadel-llm-edited
done | sort | uniq -c
"""
"""Kills a change of a file at 40 moments; prints the checksums of the resulting files, with counts."""


def content(host: Host) -> str:
    return host.machine.inside(FILE).read_text(encoding="utf-8")


def set_(host: Host, *words: str, verb: str = "set") -> dict[str, str]:
    """Change `edited`; return when each key takes effect."""
    changed: dict[str, str] = json.loads(host.machine.output("citadel-llm", verb, "edited", *words, "--json"))[
        "changed"
    ]
    return changed


def model(host: Host) -> dict[str, object]:
    """The model as vLLM describes it."""
    answer = host.machine.output("curl", "-sf", f"http://127.0.0.1:{PORT}/v1/models")
    (one,) = json.loads(answer)["data"]
    found: dict[str, object] = one
    return found


def test_a_changed_setting_reaches_systemd_and_vllm(host: Host) -> None:
    machine = host.machine
    host.settings("edited")
    machine.write(FILE, COMMENTED)
    machine.run("chown", "root:adm", FILE)
    assert set_(host, "MAX_TASKS=700") == {"MAX_TASKS": "start"}
    assert content(host) == COMMENTED + "MAX_TASKS=700\n"
    machine.run("systemctl", "start", "citadel-llm@edited")
    before = model(host)["max_model_len"]
    changed = set_(
        host, "MAX_TASKS=900", 'VLLM_ARGS=--hf-overrides={"max_position_embeddings":1024}', "OMP_WAIT_POLICY=passive"
    )
    assert changed == {"MAX_TASKS": "now", "VLLM_ARGS": "reload", "OMP_WAIT_POLICY": "reload"}
    assert machine.show("citadel-llm@edited", "TasksMax", "NeedDaemonReload") == {
        "TasksMax": "900",
        "NeedDaemonReload": "no",
    }
    group = machine.show("citadel-llm@edited", "ControlGroup")["ControlGroup"]
    limits = [f"/sys/fs/cgroup{controller}{group}/pids.max" for controller in ("", "/pids")]
    held = machine.run("cat", *limits, check=False).stdout.split()
    assert held == ["900"], "the kernel has the new limit without a restart"
    machine.run("citadel-llm", "reload", "edited")
    assert model(host)["max_model_len"] == 1024 != before
    assert content(host) == COMMENTED + (
        "MAX_TASKS=900\n"
        """VLLM_ARGS='--hf-overrides={"max_position_embeddings":1024}'\n"""
        "OMP_WAIT_POLICY=passive\n"
    )
    assert machine.output("stat", "-c", "%U %G %a", FILE) == "root adm 644"
    now = content(host)
    groups = [limit.replace("pids.max", "cgroup.procs") for limit in limits]
    (processes,) = [file for file in groups if machine.inside(file).exists()]
    machine.run("sh", "-c", MANY_TASKS, processes)
    until(lambda: " " not in host.server("edited"), "the old server has ended and uses no more memory")

    def refused(setting: str) -> bool:
        done = machine.run("citadel-llm", "set", "edited", "--dry-run", setting, check=False)
        return done.returncode == 78 and f"{setting} is " in done.stderr

    def less_memory_is_refused() -> bool:
        # The kernel may still be releasing memory of the old server.
        used = int(machine.show("citadel-llm@edited", "MemoryCurrent")["MemoryCurrent"]) / 2**30
        return refused(f"MEMORY_LIMIT_GB={round(used * 0.9, 2):g}")

    until(less_memory_is_refused, "a limit below the use of memory is refused")
    assert refused("MAX_TASKS=64")
    assert set_(host, f"PORT={PORT + 1}", "--dry-run") == {"PORT": "restart"}
    assert content(host) == now
    assert set_(host, "VLLM_ARGS", "MAX_TASKS", verb="unset") == {"VLLM_ARGS": "reload", "MAX_TASKS": "now"}
    assert content(host) == COMMENTED + "OMP_WAIT_POLICY=passive\n"


def test_set_refuses_changes_that_a_start_would_refuse(host: Host) -> None:
    machine = host.machine
    host.settings("edited", MODEL=TINY_MODEL, PORT=PORT, KV_CACHE_GB=0.25)
    before = content(host)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for words, status, said in (
        (["edited", "PORT=80"], 78, "nothing changed: PORT=80 is refused: write a port from 1024"),
        (["edited", "PORT=11499"], 78, "PORT=11499 is also the port of test"),
        (["edited", "VLLM_ARGS=--no-such-flag"], 78, "--no-such-flag"),
        (["edited", "MAX_MODEL_LEN=100000000"], 78, "MAX_MODEL_LEN=100000000"),
        (["edited", "MODEL=/srv/none"], 78, "MODEL=/srv/none"),
        (["edited", "MAX_TASK=100", "--dry-run"], 0, "did you mean MAX_TASKS?"),
        (["edited", "MAX_TASKS=100\n200"], 78, "MAX_TASKS=100"),
        (["edited", "MAX_TASKS"], 2, "KEY=VALUE"),
        (["edited", "1=2"], 2, "is not a key"),
        (["nobody", "PORT=11500"], 4, "there is no instance 'nobody'"),
    ):
        done = machine.run("citadel-llm", "set", *words, check=False)
        assert (done.returncode, said in done.stderr) == (status, True), (words, done.stderr)
    done = machine.run("citadel-llm", "unset", "edited", "PORT", check=False)
    assert (done.returncode, "PORT is missing" in done.stderr) == (78, True), done.stderr
    done = machine.run(*as_nobody, "citadel-llm", "set", "edited", "PORT=11600", check=False)
    assert (done.returncode, "run it with sudo" in done.stderr) == (1, True), done.stderr
    assert content(host) == before
    # A model must be named before `pull` can fetch it.
    assert set_(host, "MODEL=org/name") == {"MODEL": "start"}
    assert [file.name for file in machine.inside("/etc/default").glob("*citadel-llm-[ed]*")] == ["citadel-llm-edited"]


def test_killed_set_leaves_the_old_or_the_new_file(host: Host) -> None:
    host.settings("edited", MODEL=TINY_MODEL, PORT=PORT, OMP_X=0)
    begin = time.monotonic()
    seen = host.machine.output("bash", "-c", KILLED).splitlines()
    SUMMARY.append(f"killed 40 times in {time.monotonic() - begin:.0f} s: {len(seen)} different files")
    # The original file, and the files with either value.
    assert 2 <= len(seen) <= 3, seen
    assert content(host).startswith(f"MODEL={TINY_MODEL}\nPORT={PORT}\nOMP_X=")
    set_(host, "OMP_X=2")
    assert content(host) == f"MODEL={TINY_MODEL}\nPORT={PORT}\nOMP_X=2\n"
    assert not host.machine.inside("/etc/default/.citadel-llm-draft").exists()


def test_concurrent_set_loses_no_change(host: Host) -> None:
    host.settings("edited", MODEL=TINY_MODEL, PORT=PORT)
    host.machine.run("bash", "-c", TOGETHER)
    lines = set(content(host).splitlines())
    assert lines == {f"MODEL={TINY_MODEL}", f"PORT={PORT}"} | {
        f"OMP_{who}{number}={number}" for who in "ab" for number in range(1, 9)
    }
