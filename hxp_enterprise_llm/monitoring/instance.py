"""One instance as the monitor knows it at this moment."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hxp_enterprise_llm.control.service import State, limits_of, mending
from hxp_enterprise_llm.control.systemd import UNSET
from hxp_enterprise_llm.monitoring import cgroups
from hxp_enterprise_llm.monitoring.cgroups import Usage
from hxp_enterprise_llm.monitoring.failures import kind_of, reason_of, words
from hxp_enterprise_llm.monitoring.health import FailureSeen, ServiceHealth
from hxp_enterprise_llm.monitoring.ledger import Ledger
from hxp_enterprise_llm.monitoring.presence import Presence
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

RATE_SEC = 1.0
"""The shortest time over which the use of the CPU is measured."""
STARTUP_GOAL_SEC = 30.0
"""How soon after its start a model is promised to answer."""
UP = (State.READY, State.RELOADING)
NOT_ASKED = "not yet asked whether it answers"
FIELDS = set(ServiceHealth.model_fields)
CANNOT_ASK = "nobody knows where to ask it: its settings are refused"


Stamps = tuple[tuple[int, int, int] | None, ...]
"""What changes with every change of a file: its number, the time of its last change (ns), and its size."""


class Instance:
    """What systemd, the kernel, the settings and the instance's own endpoint say.

    `trouble` is "" if its endpoint answers, else why not. `known` says whether systemd's word on it is of now, `seen`
    whether it was when systemd told of it last. `config` is None while its settings are refused; `read` tells which
    files they are from. `served` is where its main process says that it is reached, `expires` when it says that the
    certificate does which clients see then (seconds since the epoch).
    """

    def __init__(self, name: str, presence: Presence) -> None:
        self.name = name
        self.presence = presence
        self.config: ServiceConfigSchema | None = None
        self.read: Stamps | None = None
        self.served: Address | None = None
        self.expires: float | None = None
        self.properties: dict[str, Any] = {}
        self.usage = Usage()
        self.trouble = NOT_ASKED
        self.known = False
        self.seen = False
        self._failing = False
        self._cores: float | None = None
        self._reference: tuple[float, float] | None = None

    @property
    def state(self) -> State:
        """What systemd says, in one word."""
        if not self.known:
            return State.UNKNOWN
        return State.of(self.properties.get("ActiveState", ""), self.properties.get("SubState", ""))

    @property
    def up(self) -> bool:
        """Whether systemd says that it runs; one that reloads goes on answering."""
        return self.state in UP

    @property
    def ready(self) -> bool:
        """Whether it answers requests."""
        return self.up and not self.trouble and not self._mending

    @property
    def _mending(self) -> bool:
        """Whether its main process says that it replaces the engine. In a reload the old one answers meanwhile."""
        return self.known and mending(self.properties)

    @property
    def address(self) -> Address | None:
        """Where it is reached: by its own word while it runs, for the settings may have changed since it started."""
        if self.up and self.served:
            return self.served
        return Address.of(self.config) if self.config else None

    @property
    def enabled(self) -> bool:
        """Whether it starts at boot."""
        return bool(self.properties.get("UnitFileState") == "enabled")

    @property
    def since(self) -> float:
        """When the unit's state last changed (seconds since the epoch)."""
        return (self._figure("StateChangeTimestamp") or 0) / 1e6

    def uptime_counts(self, now: float) -> bool | None:
        """True for time that it is ready, False for time that it should be; None if it need not be, or nobody knows.

        It need not be after a clean stop, nor in the first half minute of a start that follows no failure.
        """
        state = self.state
        self._failing = (self._failing or state in (State.RESTARTING, State.FAILED)) and state not in (
            *UP,
            State.STOPPED,
        )
        if state in (State.UNKNOWN, State.STOPPED) or (self.up and self.trouble in (NOT_ASKED, CANNOT_ASK)):
            return None
        if state is State.STOPPING and kind_of(self.properties) is None:
            return None
        if state is State.STARTING and not self._failing and now - self.since < STARTUP_GOAL_SEC:
            return None
        return self.ready

    def measure(self, now: float, root: Path = cgroups.CGROUPS) -> None:
        """Read the kernel's figures; `now` is a clock that only goes forward (seconds)."""
        self.usage = usage = cgroups.read(self.properties.get("ControlGroup") or "", root)
        used = usage.cpu_seconds
        if used is None:
            self._cores = self._reference = None
        elif self._reference is None or used < self._reference[1]:
            self._reference = (now, used)
        elif now - self._reference[0] >= RATE_SEC:
            self._cores = (used - self._reference[1]) / (now - self._reference[0])
            self._reference = (now, used)

    def health(self, ledger: Ledger, uptime: float | None) -> ServiceHealth:
        """All of it."""
        usage, config, failure = self.usage, self.config, ledger.last_failure
        # systemd has no say on one that lies idle.
        limits = limits_of(config)
        address = self.address
        quota = self._figure("CPUQuotaPerSecUSec", limits)
        return ServiceHealth.model_construct(
            # One set for all: it would take more than the values.
            _fields_set=FIELDS,
            name=self.name,
            state=self.state,
            ready=self.ready,
            enabled=self.enabled,
            host=address.host if address else None,
            port=address.port if address else None,
            tls=address.tls if address else None,
            certificate_expires=datetime.fromtimestamp(self.expires, UTC) if self.up and self.expires else None,
            model=config.model if config else None,
            pid=self._figure("MainPID") or None if self.known else None,
            since=datetime.fromtimestamp(self.since, UTC) if self.since else None,
            startup_seconds=ledger.startup_seconds,
            restarts=ledger.restarts,
            uptime_ratio=uptime,
            memory_bytes=usage.memory_bytes,
            memory_limit_bytes=usage.memory_limit_bytes or self._figure("MemoryMax", limits),
            cpu_cores=self._cores,
            cpu_limit_cores=usage.cpu_limit_cores or (None if quota is None else quota / 1e6),
            tasks=usage.tasks,
            tasks_limit=usage.tasks_limit or self._figure("TasksMax", limits),
            reason=self.reason,
            last_failure=failure
            and FailureSeen(kind=failure.kind, reason=failure.reason, at=datetime.fromtimestamp(failure.at, UTC)),
        )

    @property
    def reason(self) -> str:
        """What the service says of itself; if it is up and does not answer, or has failed, that."""
        if self.up and self.trouble:
            return words(f"systemd says that it runs, but {self.trouble}")
        if self.state in (State.FAILED, State.RESTARTING) and kind_of(self.properties):
            # One that was killed had no time to take back that it was ready.
            return reason_of(self.properties)
        said = words(self.properties.get("StatusText", ""))
        if not said and self.config is None:
            return f"its settings are refused or missing: citadel-llm check {self.name}"
        return said

    def _figure(self, name: str, otherwise: Mapping[str, float] = MappingProxyType({})) -> int | None:
        value = self.properties.get(name)
        value = otherwise.get(name) if value is None else value
        return None if value is None or value == UNSET else int(value)
