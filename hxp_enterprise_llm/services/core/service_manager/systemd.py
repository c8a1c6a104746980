"""systemd over D-Bus: units' properties, and jobs whose outcome is awaited as the event that systemd sends.

The interface is org.freedesktop.systemd1(5).
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus

from hxp_enterprise_llm.utils.errors import JobFailed, NotPermitted, SystemdUnreachable

DESTINATION = "org.freedesktop.systemd1"
MANAGER = "/org/freedesktop/systemd1"
MANAGER_INTERFACE = "org.freedesktop.systemd1.Manager"
UNIT_INTERFACE = "org.freedesktop.systemd1.Unit"
SERVICE_INTERFACE = "org.freedesktop.systemd1.Service"
PROPERTIES_INTERFACE = "org.freedesktop.DBus.Properties"
DENIED = {
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
}
UNSET = 2**64 - 1
"""What systemd gives for a figure that it does not have."""


class Systemd:
    """A connection to the system's manager. Use it as an asynchronous context manager.

    Raises SystemdUnreachable where there is none, NotPermitted where polkit or the bus says no.
    """

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self._ended: dict[str, str] = {}
        self._subscribed = False

    async def __aenter__(self) -> Self:
        try:
            self._bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        except (OSError, EOFError) as error:
            raise SystemdUnreachable(f"systemd cannot be asked: no system bus ({error})") from None
        self._bus.add_message_handler(self._on_message)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._bus:
            self._bus.disconnect()

    async def call(
        self, member: str, signature: str = "", *body: Any, path: str = MANAGER, interface: str = MANAGER_INTERFACE
    ) -> list[Any]:
        """Call a method and return its answer's body."""
        if self._bus is None:
            raise RuntimeError("not connected: use it in `async with`")
        message = Message(
            destination=DESTINATION, path=path, interface=interface, member=member, signature=signature, body=list(body)
        )
        answer = await self._bus.call(message)
        if answer is None or answer.message_type is MessageType.ERROR:
            name, text = (answer.error_name, str(answer.body[0])) if answer and answer.body else ("", "no answer")
            if name in DENIED:
                raise NotPermitted(f"systemd does not let this user do that ({member}); run it as root, with sudo")
            raise JobFailed(f"{member}: {text}")
        return list(answer.body)

    async def properties(self, unit: str, *interfaces: str) -> dict[str, Any]:
        """All properties of a unit (loading it if need be), those of its service among them."""
        (path,) = await self.call("LoadUnit", "s", unit)
        found: dict[str, Any] = {}
        for interface in interfaces or (UNIT_INTERFACE, SERVICE_INTERFACE):
            (values,) = await self.call("GetAll", "s", interface, path=path, interface=PROPERTIES_INTERFACE)
            found |= {name: value.value for name, value in values.items()}
        return found

    async def version(self) -> str:
        """The manager's version, such as "252.39-1~deb12u1"."""
        (value,) = await self.call("Get", "ss", MANAGER_INTERFACE, "Version", interface=PROPERTIES_INTERFACE)
        return str(value.value)

    async def enabled(self, unit: str) -> bool:
        """Whether the unit starts with what wants it."""
        (state,) = await self.call("GetUnitFileState", "s", unit)
        return bool(state == "enabled")

    async def job(self, verb: str, unit: str) -> str:
        """Queue `verb`Unit and wait for the end of the job; its result as systemd names it, "done" if all went well."""
        await self._subscribe()
        if not self._jobs:
            self._ended.clear()
        path: str = (await self.call(f"{verb}Unit", "ss", unit, "replace"))[0]
        if path in self._ended:
            return self._ended.pop(path)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._jobs[path] = future
        return await future

    async def _subscribe(self) -> None:
        """Have systemd send the ends of jobs, and the bus hand them to this connection."""
        if self._subscribed or self._bus is None:
            return
        rule = f"type='signal',sender='{DESTINATION}',interface='{MANAGER_INTERFACE}',member='JobRemoved'"
        bus = "org.freedesktop.DBus"
        add = Message(bus, "/org/freedesktop/DBus", bus, "AddMatch", signature="s", body=[rule])
        await self._bus.call(add)
        await self.call("Subscribe")
        self._subscribed = True

    async def enable(self, units: Sequence[str]) -> None:
        """Make units start at boot."""
        await self.call("EnableUnitFiles", "asbb", list(units), False, False)
        await self.call("Reload")

    async def disable(self, units: Sequence[str]) -> None:
        """Make units not start at boot."""
        await self.call("DisableUnitFiles", "asb", list(units), False)
        await self.call("Reload")

    def _on_message(self, message: Message) -> None:
        if message.member != "JobRemoved" or message.message_type is not MessageType.SIGNAL:
            return
        _, path, _, result = message.body
        future = self._jobs.pop(path, None)
        if future is None:
            # The job may end before the call that queued it has returned.
            self._ended[path] = result
        elif not future.done():
            future.set_result(result)
