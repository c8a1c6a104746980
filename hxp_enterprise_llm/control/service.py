"""One instance at one moment: its settings, the state of its unit in systemd, and the report of its main process."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from hxp_enterprise_llm.control.failures import exit_code, kind_of, reason_of, unit_text
from hxp_enterprise_llm.control.systemd import UNSET
from hxp_enterprise_llm.protocol.failures import Failure, Kind
from hxp_enterprise_llm.protocol.state import InstanceState, Phase
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.keys import GIBIBYTE
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import HostSettings


class State(StrEnum):
    """The state of an instance, in one word."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RECOVERING = "recovering"
    RELOADING = "reloading"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, active: str, sub: str, phase: Phase | None = None) -> "State":
        """The state from a unit's ActiveState and SubState, and from the main process's phase if that says more."""
        if sub == "auto-restart":
            return cls.RESTARTING
        if active in ("active", "reloading") and phase in BY_PHASE:
            return BY_PHASE[phase]
        return BY_ACTIVE_STATE.get(active, cls.UNKNOWN)

    @property
    def up(self) -> bool:
        """Whether the instance answers requests; during a reload, the old server does."""
        return self in (State.READY, State.RELOADING)

    @property
    def active(self) -> bool:
        """Whether the unit is active in systemd."""
        return self.up or self is State.RECOVERING

    @property
    def running(self) -> bool:
        """Whether the instance is up or about to be."""
        return self.active or self in (State.STARTING, State.RESTARTING)


BY_ACTIVE_STATE = {
    "active": State.READY,  # Type=notify: the unit becomes active once the model has answered
    "activating": State.STARTING,
    "reloading": State.RELOADING,
    "deactivating": State.STOPPING,
    "inactive": State.STOPPED,
    "failed": State.FAILED,
}
BY_PHASE = {
    Phase.RECOVERING: State.RECOVERING,
    Phase.RELOADING: State.RELOADING,
    # systemd learns of the end a moment later.
    Phase.STOPPING: State.STOPPING,
    Phase.STOPPED: State.STOPPING,
    Phase.FAILED: State.STOPPING,
}
"""States of an active unit other than ready."""


class FailureSeen(BaseModel):
    """The last failure of an instance."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    reason: str = Field(description="from the main process, or from systemd")
    at: datetime

    @classmethod
    def of(cls, failure: Failure | None) -> "FailureSeen | None":
        """The same failure with its time as a date."""
        if failure is None:
            return None
        return cls(kind=failure.kind, reason=failure.reason, at=datetime.fromtimestamp(failure.at, UTC))


class Service(BaseModel):
    """One instance, for the command and the monitor. null means unknown, no limit, or never.

    Only the monitor measures `uptime_ratio` and `cpu_cores`. `config` is None if the settings are refused. It is left
    out of dumps, because the monitor answers other hosts and a variable among the settings may be a secret.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    state: State = Field(description="unknown: systemd cannot be reached")
    ready: bool = Field(description="whether the unit is active; for the monitor, its endpoint must answer 200 too")
    enabled: bool = Field(description="starts at boot")
    queued: bool = Field(description="whether systemd has a job for it, which may be waiting")
    host: str | None = Field(description="address of its API")
    port: int | None = Field(description="port of its API; null if its settings are refused and it does not run")
    tls: bool | None = Field(description="whether its API uses HTTPS")
    certificate_expires: datetime | None = Field(description="when the certificate that clients see expires")
    model: str | None = Field(description="directory of the model, or its hub id")
    pid: int | None = Field(description="main process of the unit")
    since: datetime | None = Field(description="when the unit's state last changed")
    startup_seconds: float | None = Field(description="duration of the last start or recovery")
    restarts: int = Field(description="restarts by systemd; for the monitor, all that it has counted")
    uptime_ratio: float | None = Field(description="share of the time it should have run in 30 days that it was ready")
    memory_bytes: int | None
    memory_limit_bytes: int | None
    cpu_cores: float | None = Field(description="cores in use, over the last seconds")
    cpu_limit_cores: float | None
    tasks: int | None = Field(description="processes and threads")
    tasks_limit: int | None
    exit_status: int | None = Field(
        description="last exit status of the main process; after a signal, 128 + its number"
    )
    reason: str = Field(description="the report of the main process, or why the instance is not ready")
    last_failure: FailureSeen | None
    findings: tuple[str, ...] = Field(description="errors and warnings of its settings")
    config: SkipJsonSchema[ServiceConfigSchema | None] = Field(default=None, exclude=True)

    @property
    def running(self) -> bool:
        """Whether the instance is up or about to be."""
        return self.state.running

    @property
    def up(self) -> bool:
        """Whether the instance answers requests; during a reload, the old server does."""
        return self.state.up

    @property
    def wanted(self) -> bool:
        """Whether the instance should be ready: it is enabled, up or about to be."""
        return self.enabled or self.running

    @classmethod
    def seen(
        cls,
        name: str,
        config: ServiceConfigSchema | None,
        findings: Sequence[str],
        properties: Mapping[str, Any],
        told: InstanceState | None,
        **measured: Any,
    ) -> "Service":
        """Combine the settings, the unit's properties and the state of its current run (see `present`).

        If systemd has no limit, the limit in the settings is used. `measured` replaces fields by name.
        """
        limits = limits_of(config)
        state = state_of(properties, told)
        address = address_of(state, config, told)
        figure = Figures(properties, limits)
        changed, quota = figure("StateChangeTimestamp"), figure("CPUQuotaPerSecUSec")
        expires = told.certificate_expires if told and state.active else None
        fields: dict[str, Any] = {
            "name": name,
            "state": state,
            "ready": state is State.READY,
            "enabled": properties.get("UnitFileState") == "enabled",
            "queued": bool((properties.get("Job") or (0, "/"))[0]),
            "host": address.host if address else None,
            "port": address.port if address else None,
            "tls": address.tls if address else None,
            "certificate_expires": datetime.fromtimestamp(expires, UTC) if expires else None,
            "model": config.model if config else None,
            "pid": figure("MainPID") or None,
            "since": datetime.fromtimestamp(changed / 1e6, UTC) if changed else None,
            "startup_seconds": told.startup_seconds if told else None,
            "restarts": figure("NRestarts") or 0,
            "uptime_ratio": None,
            "memory_bytes": figure("MemoryCurrent"),
            "memory_limit_bytes": figure("MemoryMax"),
            "cpu_cores": None,
            "cpu_limit_cores": None if quota is None else quota / 1e6,
            "tasks": figure("TasksCurrent"),
            "tasks_limit": figure("TasksMax"),
            "exit_status": exit_code(properties),
            "reason": reason_for(name, config, properties, told),
            "last_failure": FailureSeen.of(told.last_failure) if told else None,
            "findings": tuple(findings),
            "config": config,
        }
        # Not validated: each value comes from a typed source, and the monitor creates thousands of these. They share
        # one set of field names, which would otherwise take more memory than the values.
        return cls.model_construct(_fields_set=FIELDS, **fields | measured)


FIELDS = set(Service.model_fields)


class Figures:
    """The numbers among a unit's properties. `otherwise` has the values of those that systemd does not set."""

    def __init__(self, properties: Mapping[str, Any], otherwise: Mapping[str, float]) -> None:
        self._properties, self._otherwise = properties, otherwise

    def __call__(self, name: str) -> int | None:
        """The number of a property."""
        value = self._properties.get(name)
        value = self._otherwise.get(name) if value is None else value
        return None if value is None or value == UNSET else int(value)


def limits_of(config: ServiceConfigSchema | None) -> dict[str, float]:
    """The limits that the generator derives from the settings, as systemd reports them; empty without settings."""
    if config is None:
        return {}
    return {
        "MemoryMax": round(config.memory_limit_gb * GIBIBYTE),
        "TasksMax": config.max_tasks,
        "CPUQuotaPerSecUSec": config.cpu_cores * 1e6,
    }


def present(told: InstanceState | None, properties: Mapping[str, Any]) -> InstanceState | None:
    """The state in an instance's file if it is of the unit's current run, or of its last run if none is active.

    The file outlives its run. A file of an earlier version does not name its run: it is used while the unit is active,
    because by then the main process has replaced an older file.
    """
    if told is None:
        return None
    if told.invocation:
        return told if told.invocation == properties.get("InvocationID") else None
    return told if properties.get("ActiveState") in ("active", "reloading") else None


def run_time_path(host: HostSettings, root: str = "/") -> str:
    """The parent of the instances' run-time directories."""
    return str(Path(root, str(host.values["VLLM_PID_PATH"]).lstrip("/")))


def state_of(properties: Mapping[str, Any], told: InstanceState | None) -> State:
    """The state of an instance; `told` as in `present`."""
    active, sub = properties.get("ActiveState") or "", properties.get("SubState") or ""
    return State.of(active, sub, told.phase if told else None)


def address_of(state: State, config: ServiceConfigSchema | None, told: InstanceState | None) -> Address | None:
    """Where clients reach an instance: while it runs, the address that it reports, as its settings may have changed."""
    if state.active and told and told.address:
        return told.address
    return Address.of(config) if config else None


def reason_for(
    name: str, config: ServiceConfigSchema | None, properties: Mapping[str, Any], told: InstanceState | None
) -> str:
    """The report of the main process; if the last run failed, the reason, since a killed process reports nothing."""
    if state_of(properties, told) in (State.FAILED, State.RESTARTING) and kind_of(properties):
        return reason_of(properties, told)
    text = told.sentence if told and told.phase else unit_text(properties)
    if not text and config is None:
        return f"its settings are refused or missing: citadel-llm check {name}"
    return text
