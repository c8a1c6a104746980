"""Following systemd: signals, repeated queries, and a lost bus; systemd is a parameter."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import pytest
from dbus_fast import Message, MessageType, Variant

from hxp_enterprise_llm.control.systemd import PROPERTIES_INTERFACE, unit_path
from hxp_enterprise_llm.monitoring import units
from hxp_enterprise_llm.monitoring.units import UnitWatch
from hxp_enterprise_llm.settings.errors import JobFailed, SystemdUnreachable

UNIT = "citadel-llm@a.service"


class FakeSystemd:
    """Answers from a table, and sends the signals that a test gives it."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.send: Callable[[Message], None] = lambda _: None
        self.end = asyncio.Event()
        self.connections = 0
        self.broken = "citadel-llm@broken.service"
        self.before_answer: Callable[[], None] = lambda: None

    def __call__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        self.connections += 1
        if self.connections == 2:
            raise SystemdUnreachable("no bus")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end.clear()

    async def listen(self, listener: Callable[[Message], None], *_: str) -> None:
        self.send = listener

    async def gone(self) -> None:
        await self.end.wait()

    async def started(self) -> int:
        return 5

    async def call(self, member: str, *_: Any) -> list[Any]:
        if member == "ListUnitsByPatterns":
            self.before_answer()
            return [[(unit, "", "loaded", shown["ActiveState"]) for unit, shown in self.units.items()]]
        return [[("/etc/systemd/system/x/citadel-llm@enabled.service", "enabled")]]

    async def properties(self, unit: str) -> dict[str, Any]:
        self.asked.append(unit)
        self.before_answer()
        if unit == self.broken:
            raise JobFailed("no")
        return self.units.get(unit, {"ActiveState": "inactive", "NoInterest": 1})


class Told:
    """Records the calls of the watch."""

    def __init__(self) -> None:
        self.files = ["a", "broken", "idle"]
        self.seen: list[tuple[str, dict[str, Any], int]] = []
        self.there: list[set[str]] = []
        self.problems: list[str] = []

    def names(self) -> list[str]:
        return self.files

    def changed(self, name: str, properties: dict[str, Any], boot: int) -> None:
        self.seen.append((name, properties, boot))

    def present(self, names: set[str]) -> None:
        self.there.append(names)

    def connected(self, problem: str) -> None:
        self.problems.append(problem)


def signal(member: str, *body: Any, path: str = "/", signature: str = "") -> Message:
    return Message(
        path=path, interface=PROPERTIES_INTERFACE, member=member, message_type=MessageType.SIGNAL,
        signature=signature, body=list(body),
    )  # fmt: skip


def changed(unit: str, **values: str) -> Message:
    properties = {name: Variant("s", value) for name, value in values.items()}
    return signal("PropertiesChanged", "x", properties, [], path=unit_path(unit), signature="sa{sv}as")


async def soon(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def follow(scenario: Callable[[FakeSystemd, Told], Any]) -> None:
    async def run() -> None:
        systemd, told = FakeSystemd(), Told()
        systemd.units[UNIT] = {"ActiveState": "active", "InvocationID": "01ab", "NoInterest": 1}
        systemd.units["citadel-llm@broken.service"] = {"ActiveState": "inactive"}
        watch = asyncio.create_task(UnitWatch(told, systemd).run())  # type: ignore[arg-type]
        await soon(lambda: told.problems == [""])
        await scenario(systemd, told)
        watch.cancel()

    asyncio.run(run())


def test_all_loaded_units_are_queried_despite_a_failed_query() -> None:
    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        assert told.there == [{"a", "broken", "enabled", "idle"}]
        assert ("a", {"ActiveState": "active", "InvocationID": "01ab"}, 5) in told.seen
        assert sorted(set(systemd.asked)) == [UNIT, "citadel-llm@broken.service"], "the loaded units"
        told_of = {name: (seen["ActiveState"], seen.get("UnitFileState")) for name, seen, _ in told.seen}
        assert (told_of["enabled"], told_of["idle"]) == (("inactive", "enabled"), ("inactive", "disabled"))

    follow(scenario)


def test_failed_query_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "AGAIN_SEC", 0.05)

    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        await soon(lambda: systemd.asked.count("citadel-llm@broken.service") > 2)
        systemd.broken = ""
        await soon(lambda: ("broken", {"ActiveState": "inactive"}, 5) in told.seen)
        systemd.asked.clear()
        await asyncio.sleep(4 * units.AGAIN_SEC)
        assert systemd.asked == []

    follow(scenario)


def test_signals_are_forwarded_at_once_and_other_properties_queried() -> None:
    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        systemd.asked.clear()
        systemd.send(changed(UNIT, StatusText="Loading"))
        assert told.seen[-1] == ("a", {"StatusText": "Loading"}, 5)
        systemd.send(changed("ssh.service", ActiveState="failed"))
        systemd.send(changed("citadel-llm-monitor.service", ActiveState="failed"))
        assert told.seen[-1][0] == "a"
        await asyncio.sleep(3 * units.TOGETHER_SEC)
        assert systemd.asked == []
        systemd.send(changed(UNIT, ActiveState="failed"))
        await soon(lambda: systemd.asked == [UNIT])

    follow(scenario)


def test_answer_overtaken_by_a_signal_is_discarded() -> None:
    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        overtaking = [changed(UNIT, StatusText="newer")]
        systemd.before_answer = lambda: systemd.send(overtaking.pop()) if overtaking else None
        systemd.asked.clear()
        told.seen.clear()
        systemd.send(changed(UNIT, ActiveState="active"))
        await soon(lambda: len(systemd.asked) == 2 and len(told.seen) == 3)
        assert [values for _, values, _ in told.seen][:2] == [{"ActiveState": "active"}, {"StatusText": "newer"}]

    follow(scenario)


def test_daemon_reload_rereads_the_instances() -> None:
    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        told.files.append("new")
        systemd.send(signal("Reloading", True, signature="b"))
        await asyncio.sleep(3 * units.TOGETHER_SEC)
        assert len(told.there) == 1
        systemd.send(signal("Reloading", False, signature="b"))
        await soon(lambda: len(told.there) == 2)
        assert "new" in told.there[-1]

    follow(scenario)


def test_unit_started_during_listing_is_queried() -> None:
    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        starting = [changed("citadel-llm@idle.service", ActiveState="activating")]
        systemd.before_answer = lambda: systemd.send(starting.pop()) if starting else None
        systemd.asked.clear()
        told.seen.clear()
        systemd.send(signal("UnitFilesChanged"))
        await soon(lambda: "citadel-llm@idle.service" in systemd.asked)
        assert next(seen for name, seen, _ in told.seen if name == "idle") == {"ActiveState": "activating"}

    follow(scenario)


def test_connection_broken_during_queries_is_reopened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "FIRST_PAUSE_SEC", 0.02)
    broken = "the connection to the system bus has broken ([Errno 11] Resource temporarily unavailable)"

    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        def break_once() -> None:
            systemd.before_answer = lambda: None
            raise SystemdUnreachable(broken)

        systemd.before_answer = break_once
        told.seen.clear()
        systemd.send(changed(UNIT, ActiveState="active"))
        await soon(lambda: told.problems[-1] == "" and len(told.problems) > 1)
        # The fake refuses the second connection with "no bus".
        assert (told.problems, systemd.connections) == (["", broken, "no bus", ""], 3)
        assert ("a", {"ActiveState": "active", "InvocationID": "01ab"}, 5) in told.seen

    follow(scenario)


def test_lost_bus_is_reported_and_reconnected() -> None:
    units.FIRST_PAUSE_SEC, before = 0.02, units.FIRST_PAUSE_SEC

    async def scenario(systemd: FakeSystemd, told: Told) -> None:
        systemd.end.set()
        await soon(lambda: told.problems[-1] == "" and len(told.problems) > 2)
        assert told.problems == ["", "the system bus has disconnected", "no bus", ""]
        systemd.send(signal("NameOwnerChanged"))
        await soon(lambda: told.problems[4:] == ["systemd has disconnected from the bus", ""])

    try:
        follow(scenario)
    finally:
        units.FIRST_PAUSE_SEC = before
