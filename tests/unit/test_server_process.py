"""What a server is told while it loads and serves; no process runs."""

import asyncio
import json
import os
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import Limits
from hxp_enterprise_llm.settings.errors import EngineDied
from hxp_enterprise_llm.supervisor import server_process
from hxp_enterprise_llm.supervisor.server_process import Heartbeat, ServerProcess


class Server(ServerProcess):
    """A server without a process. `told` has the commands that it receives; it has no room for more than `room`."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        super().__init__("spawn", [], socket.socket(), credentials or Credentials(), Limits(1, 1))
        self.signals: list[int] = []
        self.told: list[Any] = []
        self.room = 1000
        self.family: list[Any] = []

    def runs(self) -> bool:
        return not self.signals

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def tell(self, command: str | dict[str, str]) -> bool:
        if len(self.told) >= self.room:
            return False
        self.told.append(command)
        return True

    def processes(self) -> list[Any]:
        return self.family


@pytest.fixture
def one_server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(server_process, "COMMAND_SEC", 0.2)
    return Server()


def heartbeat(taken: int) -> Heartbeat:
    return Heartbeat(time.monotonic(), 0, 0, 0, True, taken, [])


def test_loading_server_receives_keys_before_it_opens(one_server: Server) -> None:
    async def run() -> None:
        await one_server.take(Credentials(("k",)))
        one_server.heartbeat = heartbeat(2)
        await one_server.open(asyncio.Event())

    asyncio.run(run())
    part, *commands = one_server.told
    assert json.loads(part["part"])["key_digests"] == ["k"]
    assert commands == ["take", "open"]
    assert one_server.signals == []


def test_private_key_follows_when_the_engine_runs() -> None:
    """The engine, a fork of the server, must not have it in memory."""
    given = Credentials(("k",), "the certificate", "the private key", 1.0, ("m",))
    server = Server(given)
    server.heartbeat = heartbeat(2)
    assert not server.told
    asyncio.run(server.open(asyncio.Event()))
    part, *commands = server.told
    assert json.loads(part["part"])["private_key"] == "the private key"
    assert commands == ["take", "open"]
    assert given.without_certificate() == Credentials(("k",), "", "", 1.0, ("m",))


def test_server_that_does_not_confirm_keys_is_killed(one_server: Server) -> None:
    async def run() -> None:
        one_server.heartbeat = heartbeat(1)
        await one_server.open(asyncio.Event())
        await one_server.take(Credentials(("k",)))

    asyncio.run(run())
    assert one_server.signals == [9]


def test_fork_server_is_not_tracked_as_engine(one_server: Server) -> None:
    """Before the fork the server's process is the fork server, whose end must not count as the server's."""
    one_server.family = [SimpleNamespace(pid=os.getpid(), name=lambda: "VLLM::ForkServer")]
    one_server.watch_engines()
    assert one_server.watched_engines == set()


@pytest.mark.parametrize(("patient", "seconds"), [(True, 0.6), (False, 0.3)])
def test_patient_drain_continues_while_tokens_arrive(
    one_server: Server, monkeypatch: pytest.MonkeyPatch, patient: bool, seconds: float
) -> None:
    """Tokens arrive for 0.4 s, and the limit is 0.3 s."""
    clock: SimpleNamespace = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    async def tick(_: float) -> None:
        clock.now += 0.05
        tokens = min(int(clock.now / 0.1), 4)
        one_server.heartbeat = Heartbeat(clock.now, 1, 1, 1, False, 1, [tokens])

    monkeypatch.setattr(server_process, "time", clock)
    monkeypatch.setattr("asyncio.sleep", tick)
    assert asyncio.run(one_server.leave(0.3, patient=patient)) is False
    assert clock.now >= seconds
    assert (clock.now > 0.35) is patient


def test_server_with_broken_channel_is_not_opened(one_server: Server) -> None:
    one_server.room = 1

    async def run() -> None:
        await one_server.take(Credentials(("k",)))
        await one_server.open(asyncio.Event())

    with pytest.raises(EngineDied, match="could not be sent"):
        asyncio.run(run())


def test_a_stop_does_not_wait_for_a_server_to_open(one_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "COMMAND_SEC", 3600)

    async def run() -> bool:
        stop = asyncio.Event()
        opening = asyncio.create_task(one_server.open(stop))
        await asyncio.sleep(0)
        stop.set()
        return bool(await asyncio.wait_for(opening, 60))

    assert asyncio.run(run()) is False
