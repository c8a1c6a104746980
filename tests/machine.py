"""A throwaway Debian that boots systemd as PID 1, with limits that the kernel enforces.

    with Machine.boot("example") as machine:
        machine.run("systemctl", "is-system-running")

A base tree is made once by debootstrap and kept; every machine is an overlay over it, so a fresh host takes a second.
It runs in systemd-nspawn with a network of its own, which holds loopback and nothing else. Needs root.
Standard library only: the demo runs it with the distribution's Python.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from base_tree import CACHE, ENVIRONMENT, base_tree

CGROUPS = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio", "cpuset", "devices", "freezer")
SHUTDOWN_SIGNAL = signal.SIGRTMIN + 3  # systemd(1): start halt.target
SHUTDOWN_SEC = 60
BOOT_SEC = 60


def host_runs_systemd() -> bool:
    """Whether this host runs systemd, which can give nspawn a scope."""
    return Path("/run/systemd/system").is_dir()


def _controllers() -> list[str]:
    """Cgroup hierarchies in which a machine has its own group, including those of systemd's process tracking."""
    own = [name for name in ("systemd", "unified") if (CGROUPS / name / "cgroup.procs").exists()]
    return [*V1_CONTROLLERS, *own]


class Machine:
    """A booted machine, created by `boot`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.root = folder / "root"
        self._launcher: subprocess.Popen[bytes] | None = None
        self._leader = 0

    @classmethod
    @contextlib.contextmanager
    def boot(cls, name: str, suite: str = "bookworm", layers: Sequence[Path] = ()) -> Iterator["Machine"]:
        """Boot a fresh machine and remove it completely in the end, also when interrupted.

        `layers` are folders whose files appear at the same paths in the machine.
        """
        with cls._fresh(name, suite, layers) as machine:
            machine._start()
            try:
                yield machine
            except Exception:
                print(f"\nthe journal of {machine.name}: {machine.keep_journal()}", flush=True)
                raise

    @classmethod
    @contextlib.contextmanager
    def unbooted(cls, name: str, more: Sequence[str] = ()) -> Iterator[Path]:
        """The root of a fresh machine that is not booted, for a chroot; /proc is mounted, as in every chroot.

        `more` names further packages of the distribution to include.
        """
        with cls._fresh(name, more=more) as machine:
            subprocess.run(["mount", "-t", "proc", "proc", machine.root / "proc"], check=True)
            yield machine.root

    @classmethod
    @contextlib.contextmanager
    def _fresh(
        cls, name: str, suite: str = "bookworm", layers: Sequence[Path] = (), more: Sequence[str] = ()
    ) -> Iterator["Machine"]:
        name = f"citadel-{name}-{os.getpid()}"
        machine = cls(name, CACHE / "machines" / name)
        with _signals_raise():
            tree = base_tree(suite, more)
            try:
                machine._mount([tree, *layers])
                yield machine
            finally:
                machine._remove()

    @property
    def leader(self) -> int:
        """PID of the machine's systemd on this host, for `nsenter --target`."""
        return self._leader

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = 600, echo: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine as root; `echo` shows its output as it comes instead of returning it."""
        words = ["nsenter", f"--target={self._leader}", "--all", "--", *map(str, command)]
        streams = None if echo else subprocess.PIPE
        done = subprocess.run(
            words,
            stdout=streams,
            stderr=streams,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            env=ENVIRONMENT,
            check=False,
        )
        if check and done.returncode:
            raise MachineError(command, done)
        return done

    def output(self, *command: str | Path, timeout: float = 600) -> str:
        """Standard output of a command that succeeds, without the last newline."""
        return self.run(*command, timeout=timeout).stdout.rstrip("\n")

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit as `systemctl show` prints them."""
        lines = self.output("systemctl", "show", unit, f"--property={','.join(properties)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def inside(self, path: str) -> Path:
        """The path on this host of a path in the machine, including file systems mounted inside the machine."""
        return Path(f"/proc/{self._leader}/root", path.lstrip("/"))

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine."""
        file = self.inside(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def copy_in(self, source: Path, path: str) -> None:
        """Copy a file or a directory into the machine."""
        target = self.inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)

    def keep_journal(self) -> str:
        """Copy the journal out of the machine; return the command that opens the copy."""
        self.run("journalctl", "--sync", check=False)
        kept = CACHE / "journals" / self.name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.root / "var/log/journal", kept)
        return f"journalctl --directory {kept}"

    def _mount(self, layers: Sequence[Path]) -> None:
        for part in ("upper", "work", "root"):
            (self.folder / part).mkdir(parents=True)
        lower = ":".join(map(str, layers))
        options = f"lowerdir={lower},upperdir={self.folder}/upper,workdir={self.folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)
        # The machine is never online: network-online.target would time out after two minutes.
        waiting = self.root / "etc/systemd/system/systemd-networkd-wait-online.service"
        waiting.symlink_to("/dev/null")

    def _start(self) -> None:
        nspawn = [
            "systemd-nspawn", "--boot", "--quiet", "--console=passive", "--private-network", "--link-journal=no",
            "--settings=no", "--resolv-conf=off", "--timezone=off",
            # Allowed on a host, but not by the default filter of nspawn in systemd 252.
            "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
            f"--machine={self.name}", f"--directory={self.root}",
        ]  # fmt: skip
        groups: list[Path] = []
        environment = ENVIRONMENT
        if not host_runs_systemd():
            # Without systemd on the host, create the cgroups here; the identity mapping lets the machine write to them.
            nspawn += ["--register=no", "--keep-unit", "--private-users=identity"]
            groups = list(self._make_groups())
            # systemd 256 and later refuse cgroup version 1 without this variable.
            environment = ENVIRONMENT | {"SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE": "1"}
        enter = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
        log = (self.folder / "console.log").open("wb")
        self._launcher = subprocess.Popen(
            ["sh", "-c", enter, "sh", *(group / "cgroup.procs" for group in groups), "--", *nspawn],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        log.close()
        self._leader = self._wait_for_leader()
        state = self.run("systemctl", "is-system-running", "--wait", check=False, timeout=BOOT_SEC).stdout.strip()
        if state not in ("running", "degraded"):
            raise RuntimeError(f"{self.name} did not boot: {state or self._console()}")

    def _wait_for_leader(self) -> int:
        """PID (on this host) of the machine's PID 1, once its systemd answers."""
        assert self._launcher
        children = Path(f"/proc/{self._launcher.pid}/task/{self._launcher.pid}/children")
        end = time.monotonic() + BOOT_SEC
        while time.monotonic() < end and self._launcher.poll() is None:
            for child in children.read_text().split():
                self._leader = int(child)
                bus = f"/proc/{child}/root/run/systemd/private"
                # A child that has just ended has no readable exe link.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.basename(os.readlink(f"/proc/{child}/exe")) == "systemd" and os.path.exists(bus):
                        return int(child)
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not boot: {self._console()}")

    def _console(self) -> str:
        return (self.folder / "console.log").read_text(errors="replace")[-2000:]

    def _make_groups(self) -> Iterator[Path]:
        for controller in _controllers():
            group = CGROUPS / controller / self.name
            group.mkdir()
            if controller == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (group / file).write_text((group.parent / file).read_text())
            yield group

    def _remove(self) -> None:
        if self._launcher and self._launcher.poll() is None:
            if self._leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, SHUTDOWN_SIGNAL)
            try:
                self._launcher.wait(SHUTDOWN_SEC if self._leader else 0)
            except subprocess.TimeoutExpired:
                self._launcher.kill()
                if self._leader:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._leader, signal.SIGKILL)
                self._launcher.wait()
        if self.root.is_mount():
            subprocess.run(["umount", "--recursive", self.root], check=True)
        for controller in _controllers() if not host_runs_systemd() else ():
            group = CGROUPS / controller / self.name
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        with contextlib.suppress(OSError):
            os.rmdir(f"/run/systemd/nspawn/propagate/{self.name}")
        shutil.rmtree(self.folder, ignore_errors=True)


class MachineError(Exception):
    """A command in a machine failed; the message contains its output."""

    def __init__(self, command: Sequence[str | Path], done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(
            f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout or ''}{done.stderr or ''}"
        )


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that a terminated run removes its machine."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
