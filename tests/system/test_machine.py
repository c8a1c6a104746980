"""The throwaway machine itself, and the build on a bare one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from base_tree import PROJECT
from machine import Machine
from traces import traces

BOOT_AND_WAIT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from machine import Machine
with Machine.boot("interrupted") as machine:
    print(machine.name, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_machine_leaves_nothing(number: signal.Signals) -> None:
    command = [sys.executable, "-c", BOOT_AND_WAIT, str(PROJECT / "tests")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert name.startswith("citadel-interrupted-")
        process.send_signal(number)
        process.wait(60)
    assert not traces(name)


def test_build_without_tools_or_network_names_the_missing_package(tmp_path: Path) -> None:
    """A new machine without a network: no dh-virtualenv, and no way to get it."""
    checkout = tmp_path / "checkout"
    shutil.copytree(PROJECT, checkout, ignore=shutil.ignore_patterns("dist", ".git", "*cache*"))
    with Machine.boot("bare") as machine:
        machine.copy_in(checkout, "/root/checkout")
        done = machine.run("/root/checkout/build.sh", check=False)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        print(last)
        assert last.startswith("build.sh: apt-get could not install")
        assert "dh-virtualenv" in last
        assert "check the network" in last
        assert not list(machine.inside("/root/checkout/dist").glob("*"))


@pytest.mark.needs("setpriv")
def test_build_by_non_root_user_is_refused() -> None:
    command = ["setpriv", "--reuid=65534", "--clear-groups", "bash", "-c", ". packaging/common.sh; require_root deb"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, "needs root" in done.stderr) == (1, True)
