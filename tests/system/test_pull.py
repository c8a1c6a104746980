"""citadel-llm pull against a local server that speaks the hub's HTTP API."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from waiting import until

from .conftest import SUMMARY, TINY_MODEL, Host

PORT = 11990
ENDPOINT = f"http://127.0.0.1:{PORT}"
MODELS = "/var/lib/citadel-llm/models"
TARGET = f"{MODELS}/org/tiny"
PARTS = f"{MODELS}/org/.tiny.partial/.parts"
BIG, CUT_AFTER, SLOW = 60_000_000, 35_000_000, 15_000_000  # bytes, bytes, bytes a second; written in chunks of 10 MB
EXPOSURE = 1.1
TOKEN, TOKEN_FILE = "hf_OnlyTheAdministratorKnows", "/root/token"
FAKE_HUB = Path(__file__).resolve().parent.parent / "fake_hub.py"


class Hub:
    """A machine with a hub and an instance `pulled`, whose model is on that hub."""

    def __init__(self, host: Host) -> None:
        self.host, self.machine = host, host.machine

    def serve(self, *options: object) -> None:
        """Restart the hub with options of fake_hub.py."""
        self.stop()
        command = ["python3", "/root/fake_hub.py", str(PORT), "/root/hub", *map(str, options)]
        log = "--property=StandardOutput=truncate:/root/hub.log"
        self.machine.run("systemd-run", "--quiet", "--collect", "--unit=hub", log, *command)
        self.machine.run("sh", "-c", f"until ss -ltn | grep -q :{PORT}; do sleep 0.1; done", timeout=10)

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", "hub", check=False)

    def pull(self, *words: str) -> CompletedProcess[str]:
        return self.machine.run("citadel-llm", "pull", *words, check=False, timeout=60)

    def refused(self, *words: str) -> str:
        """The error output of a pull that must fail."""
        done = self.pull(*words)
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr
        return done.stderr

    @contextmanager
    def pulling(self, *words: str) -> Iterator[Future[CompletedProcess[str]]]:
        """A running pull whose first chunk has arrived."""
        before = self.arrived()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.pull, *words)
            until(lambda: self.arrived() > before + 5e6, "5 MB have arrived")
            yield future

    def arrived(self) -> int:
        """Size of the incomplete files in bytes."""
        parts = self.machine.inside(PARTS)
        return sum(part.stat().st_size for part in parts.iterdir()) if parts.is_dir() else 0

    def pid(self, instance: str) -> str:
        """PID of the running command."""
        return self.machine.output("pgrep", "-f", f"citadel-llm pull {instance}")

    def units(self) -> list[str]:
        """The transient units that exist."""
        words = ("list-units", "--all", "--plain", "--no-legend", "citadel-llm-pull-*")
        return [line.split()[0] for line in self.machine.output("systemctl", *words).splitlines()]

    def asked_from(self) -> list[int]:
        """Offsets at which the requests for the large file began."""
        return [
            int(at) for at in re.findall(r"GET big.safetensors from (\d+)", self.machine.output("cat", "/root/hub.log"))
        ]


@pytest.fixture
def hub(host: Host) -> Iterator[Hub]:
    machine = host.machine
    machine.copy_in(FAKE_HUB, "/root/fake_hub.py")
    machine.run(
        "sh",
        "-c",
        f"rm -rf /root/hub; cp -r {TINY_MODEL} /root/hub; cp /root/hub/config.json /root/hub/pytorch_model.bin",
    )
    machine.inside("/root/hub/big.safetensors").write_bytes(os.urandom(BIG))
    host.settings("pulled", MODEL="org/tiny", PORT=11560, KV_CACHE_GB=0.25, HF_ENDPOINT=ENDPOINT)
    hub = Hub(host)
    yield hub
    hub.stop()
    machine.run("rm", "-rf", f"{MODELS}/org")


def test_pull_resumes_verifies_and_installs_as_service_user(hub: Hub) -> None:
    machine = hub.machine
    hub.serve("--cut-after", CUT_AFTER)
    assert "org/tiny is not on this host" in hub.refused("--verify", "pulled")
    done = hub.pull("pulled")
    assert (done.returncode, done.stdout) == (0, f"pulled: {TARGET}\n"), done
    assert "/7 big.safetensors (0.06 GB)" in done.stderr
    requests = hub.asked_from()
    assert len(requests) == 2 and requests[1] > 0, "the second request did not resume where the first ended"
    assert machine.output("stat", "-c", "%U %a", TARGET, f"{TARGET}/big.safetensors").split() == [
        "agent0",
        "755",
        "agent0",
        "644",
    ]
    assert machine.output("ls", "-A", f"{MODELS}/org") == "tiny"
    # Weights in a second format are not fetched, and the pull's own files are removed.
    model = machine.output("ls", "-A", TINY_MODEL).split()
    assert sorted(machine.output("ls", "-A", TARGET).split()) == sorted(["big.safetensors", *model])
    assert "the same as on the hub" in hub.pull("--verify", "pulled").stdout
    machine.inside(f"{TARGET}/config.json").write_text("{}")
    assert "missing or damaged: config.json" in hub.refused("--verify", "pulled")


def test_models_of_instances_with_users_of_their_own_belong_to_the_package_user(hub: Hub) -> None:
    machine = hub.machine
    hub.serve()
    machine.run("sed", "-i", "s/^VLLM_USER=.*/VLLM_USER=dynamic/", "/etc/default/citadel-llm")
    try:
        assert hub.pull("pulled").returncode == 0
        assert machine.output("stat", "-c", "%U %a", f"{TARGET}/big.safetensors") == "agent0 644"
        assert "permission denied" not in machine.run("citadel-llm", "check", "pulled", check=False).stderr
        machine.run("chmod", "600", f"{TARGET}/config.json")
        said = machine.run("citadel-llm", "check", "pulled", check=False).stderr
        assert f"the group agent0 may not read {TARGET}/config.json; chmod a+r {TARGET}/config.json" in said, said
    finally:
        machine.run("sed", "-i", "s/^VLLM_USER=.*/VLLM_USER=agent0/", "/etc/default/citadel-llm")


def test_failed_pull_is_reported_and_leaves_no_model(hub: Hub) -> None:
    machine = hub.machine
    hub.serve()
    hub.host.settings("missing", MODEL="org/none", PORT=11561, HF_ENDPOINT=ENDPOINT)
    assert "the hub has no such model" in hub.refused("missing")
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "citadel-llm", "pull", "pulled"]
    done = machine.run(*as_nobody, check=False)
    assert (done.returncode, "run it with sudo" in done.stderr) == (1, True), done
    hub.stop()
    assert "run the same command to resume" in hub.refused("pulled")
    assert not machine.inside(TARGET).exists()
    assert "there is nothing to download" in hub.refused("test")
    assert hub.pull().returncode == 2
    # A start does not download either.
    assert machine.run("systemctl", "start", "citadel-llm@pulled", check=False).returncode != 0
    assert "citadel-llm pull pulled" in machine.show("citadel-llm@pulled", "StatusText")["StatusText"]


def test_killed_or_interrupted_pull_resumes_and_excludes_other_pulls(hub: Hub) -> None:
    machine = hub.machine
    hub.serve("--rate", SLOW)
    with hub.pulling("pulled") as first:
        assert "is being downloaded by another citadel-llm pull" in hub.refused("pulled")
        machine.run("kill", "-KILL", hub.pid("pulled"))
        assert first.result().returncode == -9
        until(lambda: not hub.units(), "the unit has ended with the command")
    with hub.pulling("pulled") as second:
        machine.run("kill", "-INT", hub.pid("pulled"))
        done = second.result()
    assert done.returncode == 130 and hub.units() == []
    assert done.stderr.endswith("of org/tiny kept; run the same command to resume\n")
    assert "Traceback" not in done.stderr
    assert not machine.inside(TARGET).exists()
    assert hub.pull("pulled").returncode == 0
    requests = hub.asked_from()
    assert requests[0] == 0 < requests[1] <= requests[2], requests
    assert "the same as on the hub" in hub.pull("--verify", "pulled").stdout


def test_hub_token_is_read_by_root_and_sent_only_to_the_hub(hub: Hub) -> None:
    machine = hub.machine
    machine.write("/root/right", TOKEN)
    hub.serve("--rate", SLOW, "--token-file", "/root/right")
    hub.host.settings("gated", MODEL="org/gated", PORT=11562, HF_ENDPOINT=ENDPOINT)
    assert "give a token of it with --token-file" in hub.refused("gated")
    file = machine.inside(TOKEN_FILE)
    for content, said in (
        (b"wrong\n", "the hub refuses the token"),
        (b"\n", "the file is empty"),
        (os.urandom(30), "the content is not a token"),
        (b"two words\n", "the content is not a token"),
        (b"x" * 100_000, "the content is not a token"),
    ):
        file.write_bytes(content)
        file.chmod(0o600)
        assert said in hub.refused("gated", "--token-file", TOKEN_FILE)
    assert "No such file" in hub.refused("gated", "--token-file", "/root/none")
    assert "is not a regular file" in hub.refused("gated", "--token-file", "/root")
    file.write_text(TOKEN + "\n")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hub.pull, "gated", "--token-file", TOKEN_FILE)
        until(lambda: machine.inside(f"{MODELS}/org/.gated.partial").exists(), "the download has begun")
        assert machine.output("stat", "-c", "%U", f"{MODELS}/org/.gated.partial") == "agent0"
        (unit,) = hub.units()
        pid = machine.show(unit, "MainPID")["MainPID"]
        assert machine.output("ps", "-o", "user=", "-p", pid) == "agent0"
        everywhere = f"cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; systemctl show {unit}"
        assert TOKEN not in machine.output("sh", "-c", f"{everywhere} | tr '\\0' ' '")
        done = future.result()
    assert (done.returncode, done.stdout) == (0, f"gated: {MODELS}/org/gated\n"), done
    machine.run("journalctl", "--sync")
    assert TOKEN not in done.stderr + machine.output("journalctl", "--output=cat")
    # The settings may name the token file too.
    machine.run("rm", "-r", f"{MODELS}/org/gated")
    hub.host.settings("gated", MODEL="org/gated", PORT=11562, HF_ENDPOINT=ENDPOINT, HUB_TOKEN_FILE=TOKEN_FILE)
    assert hub.pull("gated").returncode == 0
    found = machine.run("grep", "-rl", TOKEN, MODELS, "/var/cache/citadel-llm", "/run", "/tmp", "/var/tmp", check=False)
    assert found.stdout == ""


def test_full_disk_fails_pull_before_and_during_download(hub: Hub) -> None:
    machine = hub.machine
    hub.serve("--rate", SLOW)
    owner = machine.output("id", "-u", "agent0")
    machine.run("mount", "-t", "tmpfs", "-o", f"size=100M,mode=755,uid={owner}", "tmpfs", MODELS)
    try:
        assert "has 0.1 GB free; 1.1 GB are needed" in hub.refused("pulled")
        assert hub.asked_from() == []
        machine.run("mount", "-o", "remount,size=1400M", MODELS)
        with hub.pulling("pulled") as future:
            machine.run("mount", "-o", "remount,size=24M", MODELS)
            done = future.result()
        assert (done.returncode, "the disk with /var/lib/citadel-llm/models is full" in done.stderr) == (1, True), done
        assert "Traceback" not in done.stderr
        assert not machine.inside(TARGET).exists()
        machine.run("mount", "-o", "remount,size=1400M", MODELS)
        assert hub.pull("pulled").returncode == 0
        assert hub.asked_from()[-1] > 0
    finally:
        machine.run("umount", MODELS)


def test_pull_all_fetches_models_and_reports_failures(hub: Hub) -> None:
    hub.serve()
    hub.host.settings("again", MODEL="org/tiny", PORT=11563, HF_ENDPOINT=ENDPOINT)
    hub.host.settings("broken", MODEL="org/tiny", PORT="none", HF_ENDPOINT=ENDPOINT)
    # The shipped instances name no mirror and use the caller's HF_ENDPOINT.
    done = hub.machine.run("env", f"HF_ENDPOINT={ENDPOINT}", "citadel-llm", "pull", "--all", check=False)
    assert (done.returncode, done.stdout) == (1, f"again: {TARGET}\n"), done
    assert "citadel-llm-broken:2: PORT=none is refused" in done.stderr
    assert done.stderr.count("the hub has no such model") == 4, done.stderr
    assert len(hub.asked_from()) == 1


def test_start_downloads_only_with_allow_download(hub: Hub) -> None:
    machine = hub.machine
    machine.inside("/root/hub/big.safetensors").unlink()
    machine.write("/root/right", TOKEN)
    hub.serve("--token-file", "/root/right")
    settings = {"MODEL": "org/gated", "PORT": 11564, "KV_CACHE_GB": 0.25, "HF_ENDPOINT": ENDPOINT}
    hub.host.settings("fetching", **settings)
    assert machine.run("systemctl", "start", "citadel-llm@fetching", check=False).returncode != 0
    assert machine.output("cat", "/root/hub.log") == ""
    # The service gets the token as a credential: the file belongs to root.
    machine.run("install", "-m", "600", "/root/right", TOKEN_FILE)
    hub.host.settings("fetching", **settings, ALLOW_DOWNLOAD="yes", HUB_TOKEN_FILE=TOKEN_FILE)
    machine.run("systemctl", "reset-failed", "citadel-llm@fetching")
    machine.run("citadel-llm", "start", "fetching")
    assert "GET model.safetensors from 0" in machine.output("cat", "/root/hub.log")
    everywhere = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; systemctl show citadel-llm@fetching"
    assert TOKEN not in machine.output("sh", "-c", f"{everywhere} | tr '\\0' ' '") + hub.host.journal("fetching")


def test_hub_cannot_send_more_than_it_announced(hub: Hub) -> None:
    machine = hub.machine
    # Other tests keep models there.
    before = int(machine.output("du", "-sb", MODELS).split()[0])
    for lie in (["--longer", 1], ["--longer", 50_000_000], ["--endless"]):
        hub.serve(*lie)
        said = hub.refused("pulled")
        assert f"sends more than the {BIG} bytes that it has announced for big.safetensors" in said
        assert not machine.inside(TARGET).exists()
        # Complete files are kept for the next attempt; what has arrived of the longer file is not.
        assert machine.output("ls", PARTS) == ""
        assert int(machine.output("du", "-sb", MODELS).split()[0]) - before < BIG / 2
    hub.serve()
    assert hub.pull("pulled").returncode == 0


@pytest.mark.parametrize("path", ["/etc/default/citadel-llm", "a/../../b", r"\x1b]0;title\x07", r"\x9b31m", r"a\nb"])
def test_pull_refuses_file_names_of_a_hostile_hub(hub: Hub, path: str) -> None:
    hub.serve("--list", path)
    said = hub.refused("pulled")
    assert "do not trust this hub" in said and said.replace("\n", "").isprintable(), said
    assert hub.asked_from() == []


def test_text_of_the_hub_cannot_control_the_terminal(hub: Hub) -> None:
    """In a terminal, where progress is a bar."""
    machine = hub.machine
    hub.serve("--rate", SLOW, "--warning", r"topic; \x9b31mred", "--cut-after", CUT_AFTER)
    done = machine.run(
        "script", "--quiet", "--return", "--command", "citadel-llm pull pulled", "/dev/null", check=False
    )
    assert done.returncode == 0, done
    assert r"\x9b31mred" in done.stdout and "\x9b" not in done.stdout
    # The command's own sequences hide the cursor, show it, and clear the line.
    assert "100%" in done.stdout and set(re.findall(r"\x1b[^hlK]*.", done.stdout)) <= {
        "\x1b[?25l",
        "\x1b[?25h",
        "\x1b[K",
    }
    hub.serve("--error", r"\x1b]0;title\x07\x9b31m\u202ered\ncitadel-llm: forged")
    said = hub.refused("--verify", "pulled")
    assert said.replace("\n", "").isprintable() and "\ncitadel-llm: forged" not in said, said


def test_download_runs_in_a_sandbox(hub: Hub) -> None:
    machine = hub.machine
    # So slow that the test ends before the download.
    hub.serve("--rate", SLOW / 10)
    with hub.pulling("pulled") as pulled:
        (unit,) = hub.units()
        last = machine.output("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
        SUMMARY.append(last.removeprefix("→ "))
        assert float(last.split(": ")[1].split()[0]) <= EXPOSURE, last
        shown = machine.show(unit, "MainPID", "User", "MemoryMax", "MemorySwapMax", "TasksMax")
        pid = shown.pop("MainPID")
        assert shown == {"User": "agent0", "MemoryMax": str(1 << 30), "MemorySwapMax": "0", "TasksMax": "32"}
        status = dict(line.split(":\t", 1) for line in machine.output("cat", f"/proc/{pid}/status").splitlines())
        assert int(status["CapBnd"], 16) == 0 and (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

        def there(*command: str) -> CompletedProcess[str]:
            """Run a command as root with the view that the process has of the file system."""
            return machine.run("nsenter", f"--target={pid}", "--mount", "--", *command, check=False)

        for place in (
            "/etc",
            "/usr",
            "/opt/citadel",
            "/var",
            "/var/lib/citadel-llm",
            "/run",
            "/srv",
            "/tmp",
            "/var/tmp",
        ):
            done = there("touch", f"{place}/written")
            assert done.returncode and re.search("Read-only file system|Permission denied", done.stderr), (place, done)
        for place in (MODELS, "/run/tmp", "/dev/shm"):
            written = f"{place}/written"
            assert there("cp", "/bin/true", written).returncode == 0, place
            done = there(written)
            assert done.returncode and "Permission denied" in done.stderr, (place, done)
            assert there("rm", written).returncode == 0
        assert there("ls", "/var/lib").stdout == "citadel-llm\n"
        assert there("ls", "/opt").stdout == "citadel\n"
        for hidden in ("/home", "/root", "/etc/citadel-llm", "/var/log", "/run/dbus"):
            assert there("ls", "-A", hidden).stdout == "", hidden
        machine.run("kill", "-INT", hub.pid("pulled"))
        assert pulled.result().returncode == 130
    assert hub.units() == []


def test_verification_cannot_write_and_waits_for_no_fifo(hub: Hub) -> None:
    machine = hub.machine
    hub.serve()
    assert hub.pull("pulled").returncode == 0
    machine.run(
        "sh", "-c", f"cd {TARGET}; rm config.json tokenizer.json; mkfifo config.json; ln -s /dev/zero tokenizer.json"
    )
    assert "missing or damaged: config.json, tokenizer.json" in hub.refused("--verify", "pulled")


def test_pull_without_systemd_warns_and_runs_as_the_services_user(hub: Hub) -> None:
    machine = hub.machine
    hub.serve("--rate", SLOW)
    hide = "mount -t tmpfs tmpfs /run/systemd && exec citadel-llm pull pulled"
    done = machine.run("unshare", "--mount", "sh", "-c", hide, check=False)
    assert (done.returncode, done.stdout) == (0, f"pulled: {TARGET}\n"), done
    assert "runs as agent0 without a sandbox" in done.stderr
    assert machine.output("stat", "-c", "%U", f"{TARGET}/big.safetensors") == "agent0"


def test_unit_that_cannot_start_is_reported(hub: Hub) -> None:
    machine = hub.machine
    hub.serve()
    machine.run("mv", MODELS, f"{MODELS}.away")
    try:
        said = hub.refused("pulled")
        assert "the downloading process ended with status" in said, said
    finally:
        machine.run("mv", f"{MODELS}.away", MODELS)
