"""Processes are found, killed and awaited; these tests start some."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hxp_enterprise_llm.supervisor import processes

pytestmark = pytest.mark.starts_processes

# An "engine" that outlives its "server", with a child that has left the group, and one that ignores what it can.
TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
children = [subprocess.Popen(sleep, stdout=subprocess.PIPE, start_new_session=new) for new in (False, True)]
for child in children:
    child.stdout.readline()
print(*(child.pid for child in children), flush=True)
if "outlived" in sys.argv:
    os._exit(0)
time.sleep(600)
"""


class Tree:
    """A server that leads a process group, and the PIDs of its two children."""

    def __init__(self, *arguments: str) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-c", TREE, *arguments], stdout=subprocess.PIPE, process_group=0
        )
        assert self.server.stdout
        self.children = [int(pid) for pid in self.server.stdout.readline().split()]
        self.pids = [self.server.pid, *self.children]

    def end(self) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.server.wait()
        if self.server.stdout:
            self.server.stdout.close()


@pytest.fixture
def trees() -> Iterator[list[Tree]]:
    made: list[Tree] = []
    yield made
    for tree in made:
        tree.end()


def test_all_of_a_server_has_ended_after_a_kill(trees: list[Tree]) -> None:
    trees.append(Tree())
    server = trees[0].server.pid
    assert processes.family(server) == sorted(trees[0].pids)
    assert asyncio.run(processes.kill(server, [], 30)) == []
    # Nobody has asked for the exit status of the server: a zombie holds no memory, and counts as gone.
    assert processes.family(server, trees[0].children) == []
    assert trees[0].server.wait() == -signal.SIGKILL


def test_an_engine_that_outlives_its_server_is_found_by_the_group(trees: list[Tree]) -> None:
    trees.append(Tree("outlived"))
    trees[0].server.wait()
    in_group, _ = trees[0].children
    assert processes.family(trees[0].server.pid) == [in_group]
    # A process that has left the group is known from before.
    assert asyncio.run(processes.kill(trees[0].server.pid, trees[0].children, 30)) == []
    assert processes.family(trees[0].server.pid, trees[0].children) == []


def test_waiting_for_an_end_does_not_block_the_event_loop(trees: list[Tree]) -> None:
    trees.append(Tree())

    async def run() -> bool:
        waiting = asyncio.create_task(processes.all_ended(trees[0].pids, 60))
        await asyncio.sleep(0.01)
        # On a blocked loop this would never happen.
        assert await processes.kill(trees[0].server.pid, [], 30) == []
        return await waiting

    assert asyncio.run(run())


def test_a_process_that_does_not_end_is_told(trees: list[Tree]) -> None:
    trees.append(Tree())
    assert not asyncio.run(processes.all_ended(trees[0].pids, 0.01))


def test_this_process_and_its_group_are_no_family() -> None:
    """Before a server has become the leader of its group, it is in that of the main process."""
    nobody = 2**22 + 1
    assert processes.family(nobody) == []
    assert asyncio.run(processes.kill(nobody, [], 1)) == []


@pytest.mark.parametrize(("code", "words"), [
    ("raise SystemExit(3)", "ended with status 3"),
    ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
])  # fmt: skip
def test_how_a_child_ended_is_told_until_it_is_reaped(code: str, words: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", code])
    assert asyncio.run(processes.all_ended([child.pid], 30))
    assert processes.how_child_ended(child.pid) == words
    child.wait()
    assert processes.how_child_ended(child.pid) == "ended"
    assert processes.how_child_ended(os.getpid()) == "ended", "no child"
