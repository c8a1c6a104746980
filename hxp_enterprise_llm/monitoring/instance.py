"""The current state of one instance, as the monitor knows it."""

from pathlib import Path
from typing import Any

from hxp_enterprise_llm.control import service
from hxp_enterprise_llm.control.failures import kind_of
from hxp_enterprise_llm.control.service import FailureSeen, Figures, Service, State, limits_of
from hxp_enterprise_llm.monitoring import cgroups
from hxp_enterprise_llm.monitoring.cgroups import Usage
from hxp_enterprise_llm.monitoring.ledger import Ledger
from hxp_enterprise_llm.monitoring.presence import Presence
from hxp_enterprise_llm.protocol.failures import one_line
from hxp_enterprise_llm.protocol.state import SENTENCE_LENGTH, InstanceState
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

RATE_SEC = 1.0
"""The shortest time over which CPU use is measured (seconds)."""
STARTUP_GOAL_SEC = 30.0
"""A model should answer within this time of its start (seconds)."""
NOT_PROBED = "its endpoint has not been probed yet"
NO_ADDRESS = "its address is not known: its settings are refused"

Stamps = tuple[tuple[int, int, int] | None, ...]
"""Identifies the content of a file: inode number, time of the last change (ns) and size."""


class Instance:
    """Everything known from systemd, the kernel, the settings, the main process and the instance's own endpoint.

    `problem` is "" if the endpoint answers, else why it does not. `known` says whether systemd's properties are
    current, `seen` whether they were when they last changed. `config` is None while the settings are refused,
    `findings` are the errors and warnings in the settings, and `read` identifies the settings files. `told` is the
    state that the main process of the unit's current run, or of its last run, has written.
    """

    def __init__(self, name: str, presence: Presence) -> None:
        self.name = name
        self.presence = presence
        self.config: ServiceConfigSchema | None = None
        self.findings: tuple[str, ...] = ()
        self.read: Stamps | None = None
        self.told: InstanceState | None = None
        self.properties: dict[str, Any] = {}
        self.usage = Usage()
        self.problem = NOT_PROBED
        self.known = False
        self.seen = False
        self._failing = False
        self._cores: float | None = None
        self._reference: tuple[float, float] | None = None

    @property
    def state(self) -> State:
        """The state; unknown while systemd cannot be reached."""
        return service.state_of(self.properties, self.told) if self.known else State.UNKNOWN

    @property
    def ready(self) -> bool:
        """Whether the instance answers requests."""
        return self.state.up and not self.problem

    @property
    def address(self) -> Address | None:
        """Where clients reach the instance."""
        return service.address_of(self.state, self.config, self.told)

    @property
    def since(self) -> float:
        """When the unit's state last changed (seconds since the epoch)."""
        return (self.properties.get("StateChangeTimestamp") or 0) / 1e6

    def uptime_counts(self, now: float) -> bool | None:
        """True while the instance is ready, False while it should be; None if it need not be, or the state is unknown.

        It need not be ready after a clean stop, nor in the first 30 s of a start that follows no failure.
        """
        state = self.state
        self._failing = (self._failing or state in (State.RESTARTING, State.FAILED)) and not (
            state.up or state is State.STOPPED
        )
        if state in (State.UNKNOWN, State.STOPPED) or (state.up and self.problem in (NOT_PROBED, NO_ADDRESS)):
            return None
        if state is State.STOPPING and kind_of(self.properties) is None:
            return None
        if state is State.STARTING and not self._failing and now - self.since < STARTUP_GOAL_SEC:
            return None
        return self.ready

    def measure(self, now: float, root: Path = cgroups.CGROUPS) -> None:
        """Read the kernel's figures; `now` is a monotonic clock (seconds)."""
        self.usage = usage = cgroups.read(self.properties.get("ControlGroup") or "", root)
        used = usage.cpu_seconds
        if used is None:
            self._cores = self._reference = None
        elif self._reference is None or used < self._reference[1]:
            self._reference = (now, used)
        elif now - self._reference[0] >= RATE_SEC:
            self._cores = (used - self._reference[1]) / (now - self._reference[0])
            self._reference = (now, used)

    def service(self, ledger: Ledger, uptime: float | None) -> Service:
        """Everything known about the instance, including the monitor's own measurements and counters."""
        usage, state = self.usage, self.state
        figure = Figures(self.properties, limits_of(self.config))
        quota = figure("CPUQuotaPerSecUSec")
        return Service.seen(
            self.name,
            self.config,
            self.findings,
            self.properties,
            self.told,
            state=state,
            ready=self.ready,
            pid=figure("MainPID") or None if self.known else None,
            startup_seconds=ledger.startup_seconds,
            restarts=ledger.restarts,
            uptime_ratio=uptime,
            memory_bytes=usage.memory_bytes,
            memory_limit_bytes=usage.memory_limit_bytes or figure("MemoryMax"),
            cpu_cores=self._cores,
            cpu_limit_cores=usage.cpu_limit_cores or (None if quota is None else quota / 1e6),
            tasks=usage.tasks,
            tasks_limit=usage.tasks_limit or figure("TasksMax"),
            exit_status=ledger.exit_code,
            last_failure=FailureSeen.of(ledger.last_failure),
            **({"reason": self._unanswered} if state.up and self.problem else {}),
        )

    @property
    def _unanswered(self) -> str:
        return one_line(f"systemd says that it runs, but {self.problem}", SENTENCE_LENGTH)
