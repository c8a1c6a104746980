"""What an instance is configured to be and what it is doing, at one moment."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from hxp_enterprise_llm.control.systemd import UNSET
from hxp_enterprise_llm.settings.keys import GIBIBYTE
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.system.notify import IMPORTING, LOADING, RECOVERING


class State(StrEnum):
    """Where an instance is in its life, in one word."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, active: str, sub: str) -> "State":
        """From a unit's ActiveState and SubState."""
        if sub == "auto-restart":
            return cls.RESTARTING
        states = {
            "active": cls.READY,  # Type=notify: systemd says active once the model has answered
            "activating": cls.STARTING,
            "reloading": cls.RELOADING,
            "deactivating": cls.STOPPING,
            "inactive": cls.STOPPED,
            "failed": cls.FAILED,
        }
        return states.get(active, cls.UNKNOWN)


def limits_of(config: ServiceConfigSchema | None) -> dict[str, float]:
    """What the generator makes of the settings' limits, as systemd would say it; nothing without settings."""
    if config is None:
        return {}
    return {
        "MemoryMax": round(config.memory_limit_gb * GIBIBYTE),
        "TasksMax": config.max_tasks,
        "CPUQuotaPerSecUSec": config.cpu_cores * 1e6,
    }


def mending(properties: Mapping[str, Any]) -> bool:
    """Whether an active unit's main process says that it replaces its engine: it answers once that is done."""
    status = str(properties.get("StatusText", ""))
    return properties.get("ActiveState") == "active" and status.startswith((RECOVERING, IMPORTING, LOADING))


def _reason(properties: Mapping[str, Any]) -> str:
    """What the main process said last; of one that was killed that it was, since its last words are of before."""
    if properties.get("SubState") == "auto-restart" and properties.get("Result") in ("signal", "core-dump", "watchdog"):
        return f"the main process was ended ({properties['Result']}); systemd starts it again after RESTART_SEC"
    return str(properties.get("StatusText", ""))


class Service(BaseModel):
    """One instance. Memory in bytes, times as seconds or UTC; None is what systemd or the settings do not say.

    `config` is None if the settings are refused; `faults` then says why, one sentence each.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    state: State
    enabled: bool
    config: ServiceConfigSchema | None
    faults: tuple[str, ...]
    reason: str
    pid: int | None
    since: datetime | None
    restarts: int
    memory_bytes: int | None
    memory_limit_bytes: int | None
    cpu_limit_cores: float | None
    tasks: int | None
    tasks_limit: int | None
    exit_status: int | None
    queued: bool = False
    """Whether systemd has a job for it, which may wait for what the instance requires."""

    @property
    def ready(self) -> bool:
        """Whether the instance answers requests."""
        return self.state is State.READY

    @property
    def running(self) -> bool:
        """Whether the instance is up or on its way."""
        return self.up or self.state in (State.STARTING, State.RESTARTING)

    @property
    def up(self) -> bool:
        """Whether the instance is up; one that reloads goes on answering."""
        return self.state in (State.READY, State.RELOADING)

    @classmethod
    def seen(
        cls,
        name: str,
        config: ServiceConfigSchema | None,
        faults: tuple[str, ...],
        properties: dict[str, Any],
    ) -> "Service":
        """Put together what the settings and systemd say; a limit is that of the settings where systemd has no say."""
        limits = limits_of(config)

        def figure(key: str) -> int | None:
            value = properties.get(key, limits.get(key))
            return None if value is None or value == UNSET else int(value)

        changed = figure("StateChangeTimestamp")
        quota = figure("CPUQuotaPerSecUSec")
        return cls(
            name=name,
            state=State.RESTARTING
            if mending(properties)
            else State.of(properties.get("ActiveState", ""), properties.get("SubState", "")),
            enabled=properties.get("UnitFileState") == "enabled",
            config=config,
            faults=faults,
            reason=_reason(properties),
            pid=figure("MainPID") or None,
            since=datetime.fromtimestamp(changed / 1e6, UTC) if changed else None,
            restarts=figure("NRestarts") or 0,
            memory_bytes=figure("MemoryCurrent"),
            memory_limit_bytes=figure("MemoryMax"),
            cpu_limit_cores=None if quota is None else quota / 1e6,
            tasks=figure("TasksCurrent"),
            tasks_limit=figure("TasksMax"),
            exit_status=figure("ExecMainStatus") if properties.get("ExecMainExitTimestamp") else None,
            queued=bool(properties.get("Job", (0, "/"))[0]),
        )
