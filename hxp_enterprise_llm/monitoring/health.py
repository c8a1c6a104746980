"""Health of the services as data: what /health/services answers, and what the metrics are made of."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from hxp_enterprise_llm.control.service import State
from hxp_enterprise_llm.monitoring.failures import Kind
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.values import HostLabels

__all__ = ["FailureSeen", "MonitorHealth", "Problem", "ServiceHealth", "ServicesHealth", "Status", "Target", "overall"]


class Status(StrEnum):
    """The answer in one word."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class FailureSeen(BaseModel):
    """The last failure of a service."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    reason: str = Field(description="in the words of the service, or of systemd")
    at: datetime


class ServiceHealth(BaseModel):
    """One instance. null stands for what is not known, has no limit, or never was."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: State = Field(description="unknown: systemd cannot be asked")
    ready: bool = Field(description="systemd says that it runs, and its own endpoint answers 200")
    enabled: bool = Field(description="starts at boot")
    host: str | None = Field(description="address of its API")
    port: int | None = Field(description="port of its API; null if its settings are refused and it does not run")
    tls: bool | None = Field(description="whether its API speaks HTTPS")
    certificate_expires: datetime | None = Field(description="when the certificate that clients see does")
    model: str | None = Field(description="directory of the model, or its hub id")
    pid: int | None = Field(description="main process of the unit")
    since: datetime | None = Field(description="when the unit's state last changed")
    startup_seconds: float | None = Field(description="how long the last start, or recovery, took until it answered")
    restarts: int = Field(description="restarts by systemd, ever")
    uptime_ratio: float | None = Field(description="time ready, of the time it should have run in the last 30 days")
    memory_bytes: int | None
    memory_limit_bytes: int | None
    cpu_cores: float | None = Field(description="cores in use, over the last seconds")
    cpu_limit_cores: float | None
    tasks: int | None = Field(description="processes and threads")
    tasks_limit: int | None
    reason: str = Field(description="what the service says of itself, or why it is not ready")
    last_failure: FailureSeen | None

    @property
    def wanted(self) -> bool:
        """Whether it is enabled, or up or on its way: then it should be ready."""
        return self.enabled or self.state in (State.READY, State.STARTING, State.RELOADING, State.RESTARTING)


class ServicesHealth(BaseModel):
    """All instances; healthy if every one that is enabled or running is ready."""

    model_config = ConfigDict(frozen=True)

    status: Status
    environment: str = Field(description="CITADEL_ENV of the host")
    hostname: str = Field(description="SERVER_HOSTNAME of the host")
    services: tuple[ServiceHealth, ...]


class MonitorHealth(BaseModel):
    """The monitor itself."""

    model_config = ConfigDict(frozen=True)

    status: Status
    version: str
    environment: str = Field(description="CITADEL_ENV of the host")
    hostname: str = Field(description="SERVER_HOSTNAME of the host")
    reason: str = Field(description="what is wrong, empty if nothing")


class Target(BaseModel):
    """Where Prometheus finds one model's own metrics, as its HTTP service discovery reads it."""

    model_config = ConfigDict(frozen=True)

    targets: tuple[str] = Field(description="host:port")
    labels: dict[Literal["service", "__scheme__"], str]

    @classmethod
    def at(cls, address: Address, service: str) -> Self:
        """One that listens on `address`; Prometheus takes it to speak plain HTTP unless told."""
        https: dict[Literal["service", "__scheme__"], str] = {"__scheme__": "https"}
        return cls(targets=(address.authority,), labels={"service": service, **(https if address.tls else {})})


class Problem(BaseModel):
    """Why there is no answer."""

    detail: Literal["no such instance"] = "no such instance"


def overall(services: Sequence[ServiceHealth], host: HostLabels, reachable: bool = True) -> ServicesHealth:
    """Health of all services of a host; unhealthy if systemd is not `reachable`."""
    good = reachable and all(service.ready for service in services if service.wanted)
    status = Status.HEALTHY if good else Status.UNHEALTHY
    return ServicesHealth(status=status, environment=host.environment, hostname=host.hostname, services=tuple(services))
