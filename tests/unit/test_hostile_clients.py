"""The table of hostile connections, and the program that makes them."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import hostile_run
import pytest
from hostile_clients import LEFT, REQUEST, ROWS, Action, Endless, Hostile, Slowly, Step

OUTCOME = re.compile(rf"(?:\d\d\d(?: \d\d\d)*|closed|{LEFT})")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def test_table_has_at_least_a_hundred_different_connections() -> None:
    assert len({(row.layer, row.sends) for row in ROWS}) >= 100
    assert len({(row.group, row.name) for row in ROWS}) == len(ROWS)


def test_every_row_expects_outcomes_that_the_runner_can_report() -> None:
    for row in ROWS:
        assert all(map(OUTCOME.fullmatch, row.expects.split(" or "))), row.name
        # Only a client that ends its connection reports so.
        assert (LEFT in row.expects) == bool({Action.CLOSE, Action.RESET} & {*row.sends}), row.name


def test_nothing_comes_behind_an_endless_step() -> None:
    for row in ROWS:
        assert not [step for step in row.sends[:-1] if isinstance(step, Endless | Slowly)], row.name


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer two requests in pieces, then close the connection."""
    await reader.readuntil(b"\r\n\r\n")
    for piece in (ANSWER[:10], ANSWER[10:], ANSWER.replace(b"200", b"401")):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.05)
    writer.close()


async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection without an answer."""
    writer.close()


async def answer_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send answers until the client takes no more, then drop it."""
    await reader.readuntil(b"\r\n\r\n")
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while True:
                writer.write(ANSWER * 1000)
                await writer.drain()
    writer.transport.abort()


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read everything and never close the connection."""
    while await reader.read(65536):
        pass
    writer.close()


@pytest.mark.parametrize(
    ("handler", "sends", "outcome"),
    [
        (answer, (REQUEST,), "200 401"),
        (answer, (REQUEST, Action.AWAIT_ANSWER, Action.CLOSE), LEFT),
        (close, (Endless(REQUEST),), "closed"),
        (answer_for_ever, (REQUEST, Action.STOP_READING), "closed"),
        (hold, (Endless(REQUEST),), "open"),
        (hold, (), "open"),
    ],
)
def test_outcome_of_a_connection_is_reported(
    monkeypatch: pytest.MonkeyPatch, handler: Handler, sends: tuple[Step, ...], outcome: str
) -> None:
    monkeypatch.setattr(hostile_run, "SLACK_SEC", 0.5 if outcome == "open" else 60.0)

    async def test() -> str:
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            target = hostile_run.Target("127.0.0.1", port, tls=False, key="key", model="model", pid=0)
            ending = await hostile_run.Client(target, Hostile("group", "row", sends, outcome, within=0)).play()
            return ending.outcome

    assert asyncio.run(test()) == outcome
