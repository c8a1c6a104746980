"""A server's process is started, tells of its failures, and is drained and killed; real processes, without vLLM."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import Limits
from hxp_enterprise_llm.supervisor import processes
from hxp_enterprise_llm.supervisor.server_process import Failure, ServerProcess
from hxp_enterprise_llm.supervisor.stop import StopPlan
from hxp_enterprise_llm.worker import heartbeat
from hxp_enterprise_llm.worker.traffic import Traffic

pytestmark = pytest.mark.starts_processes


def server(arguments: list[str], _forked: bool, *, channel: socket.socket, failed: socket.socket, **_: Any) -> None:
    """Send messages, then live on with a child as an engine would."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    for message in arguments:
        (failed if "failed" in json.loads(message) else channel).send(message.encode())
    time.sleep(600)


def obedient(
    _arguments: list[str], _forked: bool, *, channel: socket.socket, listener: socket.socket, **_: Any
) -> None:
    """Send heartbeats and carry out commands as a server does, without clients."""
    os.setpgid(0, 0)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Traffic.server = SimpleNamespace(should_exit=True, server_state=SimpleNamespace(connections=()))
    Traffic.is_open = True
    Traffic.limit(Limits(request_bytes=1, connections=1))
    Traffic.take(Credentials())
    asyncio.run(heartbeat.beat(channel, listener))


def run(
    test: Callable[[ServerProcess], Awaitable[None]],
    *messages: dict[str, Any],
    target: Callable[..., None] = server,
) -> None:
    """Run a test with a server that sends these messages; kill it in the end."""

    async def started() -> None:
        with socket.socket() as listener:
            limits = Limits(request_bytes=1, connections=1)
            one = ServerProcess(
                "spawn", list(map(json.dumps, messages)), listener, Credentials(), limits, target=target
            )
            await one.start()
            while len(one.processes()) < 2:
                await asyncio.sleep(0.01)
            pids = [process.pid for process in one.processes()]
            try:
                await test(one)
            finally:
                await asyncio.gather(one.kill(), one.kill())
            assert one.gone
            assert processes.family(pids[0], pids) == []

    asyncio.run(asyncio.wait_for(started(), 60))


HEARTBEAT = {"in_flight": 1, "waiting": 1, "connections": 1, "open": True, "taken": 1, "progress": [0.0]}


def test_a_server_without_heartbeats_is_replaced_for_the_error_of_its_heartbeat() -> None:
    async def test(one: ServerProcess) -> None:
        assert (await one.ended()).endswith("can no longer send heartbeats: KeyError: 'open'")

    run(test, HEARTBEAT, {"silent": "KeyError: 'open'"})


def test_a_server_that_ignores_its_end_is_given_up_as_the_plan_says() -> None:
    async def test(one: ServerProcess) -> None:
        while one.heartbeat is None:
            await asyncio.sleep(0.01)
        now = time.monotonic()
        assert not await one.drain(StopPlan(now, now + 0.1, now + 0.2, now + 60, now + 60)), "a request is in flight"
        assert len(one.processes()) == 2

    run(test, HEARTBEAT)


def test_the_first_failure_is_the_cause_unless_a_later_one_is_final() -> None:
    async def test(one: ServerProcess) -> None:
        while one.heartbeat is None or one.failure is None or not one.failure.final:
            await asyncio.sleep(0.01)
        assert one.failure == Failure("ValueError: too long", True)

    told = [
        ("RuntimeError: a", False),
        ("RuntimeError: b", False),
        ("ValueError: too long", True),
        ("OSError: c", True),
    ]
    run(test, *({"failed": {"text": text, "final": final}} for text, final in told), HEARTBEAT)


def test_the_end_of_a_killed_server_names_the_signal() -> None:
    async def test(one: ServerProcess) -> None:
        ending = asyncio.create_task(one.ended())
        os.kill(one.processes()[0].pid, signal.SIGKILL)
        assert (await ending).endswith("was killed by SIGKILL")

    run(test)


def test_new_keys_need_no_descriptor_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of the same user has used up the descriptors in flight; the keys are a megabyte long."""

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    async def test(one: ServerProcess) -> None:
        monkeypatch.setattr(socket.socket, "sendmsg", refuse)
        await one.take(Credentials(("early",)))
        assert await one.open(asyncio.Event())
        await one.take(Credentials(tuple(f"{number:064x}" for number in range(15_000))))
        assert one.runs()
        # Those at its start, and those that were sent before it opened.
        assert one.heartbeat and one.heartbeat.taken == 3

    run(test, target=obedient)
