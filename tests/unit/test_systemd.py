"""The connection to systemd: the number of concurrent queries, and the errors of a broken bus, with a fake bus."""

import asyncio
from typing import Any

import pytest
from dbus_fast import Message, MessageType, Variant

from hxp_enterprise_llm.control import systemd
from hxp_enterprise_llm.control.systemd import Systemd, readable
from hxp_enterprise_llm.settings.errors import JobFailed, SystemdUnreachable

REPLIES = 128
"""Pending replies that dbus-daemon allows per connection."""


class FakeBus:
    """Like dbus-daemon and dbus-fast, refuses queries beyond the limit, and may break during a write."""

    def __init__(self, **_: Any) -> None:
        self.connected = True
        self.pending = self.most = self.answered = 0
        self.breaks_after = 10_000
        self.end = asyncio.Event()

    async def connect(self) -> "FakeBus":
        FakeBus.last = self
        return self

    last: "FakeBus"

    def add_message_handler(self, handler: Any) -> None:
        pass

    async def wait_for_disconnect(self) -> None:
        await self.end.wait()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def disconnect(self) -> None:
        self.connected = False
        self.end.set()

    async def call(self, _: Message) -> Message:
        if not self.connected:
            # As dbus-fast does.
            await asyncio.Event().wait()
        if self.answered >= self.breaks_after:
            self.disconnect()
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.pending += 1
        self.most = max(self.most, self.pending)
        refused = self.pending > REPLIES
        await asyncio.sleep(0)
        self.pending -= 1
        if refused:
            text = "The maximum number of pending replies per connection has been reached"
            name = "org.freedesktop.DBus.Error.LimitsExceeded"
            return Message(message_type=MessageType.ERROR, error_name=name, reply_serial=1, signature="s", body=[text])
        self.answered += 1
        body = [{"ActiveState": Variant("s", "active")}]
        return Message(message_type=MessageType.METHOD_RETURN, reply_serial=1, signature="a{sv}", body=body)


@pytest.fixture(autouse=True)
def bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "MessageBus", FakeBus)


async def ask_all(connection: Systemd, count: int) -> list[dict[str, Any] | BaseException]:
    units = (f"citadel-llm@{number}.service" for number in range(count))
    async with asyncio.timeout(60):
        return await asyncio.gather(*map(connection.properties, units), return_exceptions=True)


def test_many_units_are_queried_within_the_bus_limit() -> None:
    async def scenario() -> None:
        async with Systemd() as connection:
            found = await ask_all(connection, 2000)
            assert found == [{"ActiveState": "active"}] * 2000
            assert 1 < FakeBus.last.most <= systemd.QUESTIONS < REPLIES

    asyncio.run(scenario())


def test_bus_refuses_queries_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "QUESTIONS", 2000)

    async def scenario() -> None:
        async with Systemd() as connection:
            assert any(isinstance(one, JobFailed) for one in await ask_all(connection, 2000))

    asyncio.run(scenario())


def test_broken_bus_fails_every_pending_query_at_once() -> None:
    async def scenario() -> None:
        async with Systemd() as connection:
            FakeBus.last.breaks_after = 100
            found = await ask_all(connection, 300)
            broken = [one for one in found if isinstance(one, SystemdUnreachable)]
            assert len(broken) >= 200 - systemd.QUESTIONS
            assert len(broken) + found.count({"ActiveState": "active"}) == 300
            async with asyncio.timeout(60):
                await connection.gone()
            with pytest.raises(SystemdUnreachable, match="disconnected"):
                await connection.version()

    asyncio.run(scenario())


def test_invocation_id_is_hexadecimal_as_in_the_environment() -> None:
    """INVOCATION_ID is in hexadecimal, the property is bytes."""
    found = readable({"InvocationID": Variant("ay", b"\x01\xab"), "NRestarts": Variant("u", 2)})
    assert found == {"InvocationID": "01ab", "NRestarts": 2}
    assert readable({"InvocationID": Variant("ay", b"")}) == {"InvocationID": ""}
