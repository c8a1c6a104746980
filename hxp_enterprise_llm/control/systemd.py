"""systemd over D-Bus: properties of units, and jobs, whose end systemd signals.

The interface is org.freedesktop.systemd1(5).
"""

import asyncio
import string
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from hxp_enterprise_llm.settings.errors import JobFailed, NotPermitted, SystemdUnreachable

DESTINATION = "org.freedesktop.systemd1"
MANAGER = "/org/freedesktop/systemd1"
MANAGER_INTERFACE = "org.freedesktop.systemd1.Manager"
UNIT_INTERFACE = "org.freedesktop.systemd1.Unit"
UNITS = "/org/freedesktop/systemd1/unit"
PROPERTIES_INTERFACE = "org.freedesktop.DBus.Properties"
DENIED = {
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
}
UNSET = 2**64 - 1
"""The value with which systemd reports a number that is not set."""
QUESTIONS = 8
"""How many calls of one connection may wait for answers at the same time.

dbus-daemon refuses more than max_replies_per_connection calls, 128 on the system bus, and a full socket ends the
connection, because dbus-fast treats EAGAIN as an error. systemd answers one call after another in any case.
"""


def unit_path(unit: str) -> str:
    """The bus path of a unit; characters other than letters and digits become _ and a code (sd_bus_path_encode(3))."""
    plain = string.ascii_letters + string.digits
    encoded = (
        character if character in plain and (index or character not in string.digits) else f"_{ord(character):02x}"
        for index, character in enumerate(unit)
    )
    return f"{UNITS}/{''.join(encoded)}"


def readable(properties: Mapping[str, Variant]) -> dict[str, Any]:
    """Properties of a unit without D-Bus types; InvocationID becomes hexadecimal, as in the variable INVOCATION_ID."""
    found = {name: value.value for name, value in properties.items()}
    if "InvocationID" in found:
        found["InvocationID"] = bytes(found["InvocationID"]).hex()
    return found


class Systemd:
    """A connection to the system manager, as an asynchronous context manager.

    Raises SystemdUnreachable if there is no system manager, NotPermitted if polkit or the bus denies access.
    """

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._questions = asyncio.Semaphore(QUESTIONS)
        self._gone: asyncio.Task[None] | None = None
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._ended: dict[str, str] = {}
        self._subscribed = False
        self._changed: dict[str, asyncio.Event] = {}
        self._listeners: list[Callable[[Message], None]] = []

    async def __aenter__(self) -> Self:
        try:
            self._bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        except (OSError, EOFError) as error:
            raise SystemdUnreachable(f"systemd cannot be reached: no system bus ({error})") from None
        self._bus.add_message_handler(self._on_message)
        self._gone = asyncio.create_task(self._bus.wait_for_disconnect())  # type: ignore[no-untyped-call]  # dbus-fast's
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._bus and self._gone:
            self._bus.disconnect()
            # A broken connection ends with an error that the caller has already received.
            await asyncio.gather(self._gone, return_exceptions=True)

    async def call(
        self, member: str, signature: str = "", *body: Any, path: str = MANAGER, interface: str = MANAGER_INTERFACE
    ) -> list[Any]:
        """Call a method and return the body of its answer."""
        message = Message(
            destination=DESTINATION, path=path, interface=interface, member=member, signature=signature, body=list(body)
        )
        answer = await self._send(message)
        if answer is None or answer.message_type is MessageType.ERROR:
            name, text = (answer.error_name, str(answer.body[0])) if answer and answer.body else ("", "no answer")
            if name in DENIED:
                raise NotPermitted(f"systemd denies {member} to this user; run it as root, with sudo")
            raise JobFailed(f"{member}: {text}")
        return list(answer.body)

    async def _send(self, message: Message) -> Message | None:
        """Send a call and wait for its answer. Raises SystemdUnreachable if the connection breaks first."""
        if self._bus is None:
            raise RuntimeError("not connected: use it in `async with`")
        async with self._questions:
            # dbus-fast would wait for ever on a broken connection.
            if not self._bus.connected:
                raise SystemdUnreachable("the system bus has disconnected")
            try:
                return await self._bus.call(message)
            except (OSError, EOFError) as error:
                raise SystemdUnreachable(f"the connection to the system bus has broken ({error})") from None

    async def properties(self, unit: str) -> dict[str, Any]:
        """All properties of a unit, including those of its service; systemd loads the unit if necessary."""
        # Without an interface, the answer has the properties of all interfaces.
        (values,) = await self.call("GetAll", "s", "", path=unit_path(unit), interface=PROPERTIES_INTERFACE)
        return readable(values)

    async def properties_of(self, units: Sequence[str], target: str) -> list[dict[str, Any]]:
        """All properties of units; for a unit that systemd has not loaded, those that follow from that.

        For a call about such a unit, systemd would load and unload it, which takes 5 ms (measured). The unit does not
        run, and is enabled only if `target` wants it.
        """
        (found,) = await self.call("ListUnitsByPatterns", "asas", [], list(units))
        held = {unit[0] for unit in found}
        (wants,) = await self.call(
            "Get", "ss", UNIT_INTERFACE, "Wants", path=unit_path(target), interface=PROPERTIES_INTERFACE
        )

        async def ask(unit: str) -> dict[str, Any]:
            if unit in held:
                return await self.properties(unit)
            enabled = "enabled" if unit in wants.value else "disabled"
            return {"ActiveState": "inactive", "SubState": "dead", "UnitFileState": enabled}

        return list(await asyncio.gather(*map(ask, units)))

    async def active(self, pattern: str) -> list[str]:
        """Names of the units that match a pattern and are running, starting or stopping."""
        states = ["active", "activating", "reloading", "deactivating"]
        (found,) = await self.call("ListUnitsByPatterns", "asas", states, [pattern])
        return [unit[0] for unit in found]

    async def changes(self, unit: str) -> AsyncIterator[None]:
        """Yield once at the start, and then after each change of a property of the unit; changes may be combined.

        Raises SystemdUnreachable if the bus disconnects.
        """
        path, event = unit_path(unit), asyncio.Event()
        await self._match(f"interface='{PROPERTIES_INTERFACE}',member='PropertiesChanged',path='{path}'")
        await self._subscribe()
        self._changed[path] = event
        try:
            while True:
                event.clear()
                yield
                await self._event_or_disconnect(event)
        finally:
            del self._changed[path]

    async def listen(self, listener: Callable[[Message], None], *rules: str) -> None:
        """Call `listener` with every signal from now on; the match `rules` select what the bus sends (dbus-daemon(1)).

        The calls come in the order of the signals. Do not run jobs on a connection that listens: it is long-lived, and
        would keep the results of all jobs of the host.
        """
        self._listeners.append(listener)
        for rule in rules:
            await self._match(rule)
        await self.call("Subscribe")

    async def gone(self) -> None:
        """Return when the bus has disconnected."""
        if self._gone:
            await asyncio.wait([self._gone])

    async def version(self) -> str:
        """The manager's version, such as "252.39-1~deb12u1"."""
        (value,) = await self.call("Get", "ss", MANAGER_INTERFACE, "Version", interface=PROPERTIES_INTERFACE)
        return str(value.value)

    async def started(self) -> int:
        """When the manager started (microseconds since the epoch); unchanged by a re-execution."""
        body = (MANAGER_INTERFACE, "UserspaceTimestamp")
        (value,) = await self.call("Get", "ss", *body, interface=PROPERTIES_INTERFACE)
        return int(value.value)

    async def job(self, verb: str, unit: str) -> str:
        """Queue the job `verb`Unit and wait for its end; returns systemd's name of the result, "done" for success."""
        await self._subscribe()
        path: str = (await self.call(f"{verb}Unit", "ss", unit, "replace"))[0]
        if path in self._ended:
            return self._ended.pop(path)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._jobs[path] = future
        gone: asyncio.Future[Any] = self._gone or asyncio.get_running_loop().create_future()
        await asyncio.wait((gone, future), return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise SystemdUnreachable(f"the system bus has disconnected; the result of {verb.lower()} {unit} is unknown")
        return future.result()

    async def _subscribe(self) -> None:
        """Make systemd send signals, and the bus deliver the ends of jobs to this connection."""
        if self._subscribed:
            return
        await self._match(f"interface='{MANAGER_INTERFACE}',member='JobRemoved'")
        await self.call("Subscribe")
        self._subscribed = True

    async def _match(self, rule: str) -> None:
        bus = "org.freedesktop.DBus"
        sender = "" if "sender=" in rule else f"sender='{DESTINATION}',"
        rule = f"type='signal',{sender}{rule}"
        await self._send(Message(bus, "/org/freedesktop/DBus", bus, "AddMatch", signature="s", body=[rule]))

    async def _event_or_disconnect(self, event: asyncio.Event) -> None:
        changed = asyncio.create_task(event.wait())
        await asyncio.wait(filter(None, (self._gone, changed)), return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        if not event.is_set():
            raise SystemdUnreachable("the system bus has disconnected")

    async def enable(self, units: Sequence[str]) -> None:
        """Start units at boot."""
        await self.call("EnableUnitFiles", "asbb", list(units), False, False)
        await self.call("Reload")

    async def disable(self, units: Sequence[str]) -> None:
        """Do not start units at boot."""
        await self.call("DisableUnitFiles", "asb", list(units), False)
        await self.call("Reload")

    def _on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        for listener in self._listeners:
            listener(message)
        if message.member == "PropertiesChanged" and message.path in self._changed:
            self._changed[message.path].set()
        if message.member != "JobRemoved":
            return
        _, path, _, result = message.body
        future = self._jobs.pop(path, None)
        if future is None:
            # The job may end before the call that queued it has returned.
            self._ended[path] = result
        elif not future.done():
            future.set_result(result)
