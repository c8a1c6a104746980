"""Models of the answers of the health port; the command uses `Service` too."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from hxp_enterprise_llm.control.service import FailureSeen, Service
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.values import HostLabels

__all__ = ["FailureSeen", "MonitorHealth", "Problem", "Service", "ServicesHealth", "Status", "Target", "overall"]


class Status(StrEnum):
    """Whether all is well, in one word."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class ServicesHealth(BaseModel):
    """All instances; healthy if every enabled or running instance is ready."""

    model_config = ConfigDict(frozen=True)

    status: Status
    environment: str = Field(description="CITADEL_ENV of the host")
    hostname: str = Field(description="SERVER_HOSTNAME of the host")
    services: tuple[Service, ...]


class MonitorHealth(BaseModel):
    """The monitor itself."""

    model_config = ConfigDict(frozen=True)

    status: Status
    version: str
    environment: str = Field(description="CITADEL_ENV of the host")
    hostname: str = Field(description="SERVER_HOSTNAME of the host")
    reason: str = Field(description="what is wrong with the monitor; empty if nothing is")


Label = Literal["service", "__scheme__", "__meta_citadel_llm_keys"]


class Target(BaseModel):
    """Where Prometheus finds the metrics of one model, in the format of its HTTP service discovery."""

    model_config = ConfigDict(frozen=True)

    targets: tuple[str] = Field(description="host:port")
    labels: dict[Label, str]

    @classmethod
    def at(cls, address: Address, service: str, keyed: bool) -> Self:
        """The target of an instance that listens on `address`, and requires a key if `keyed`.

        Without the label of the scheme, Prometheus uses plain HTTP. It removes the label of the keys after relabeling.
        """
        labels: dict[Label, str] = {"service": service}
        if address.tls:
            labels["__scheme__"] = "https"
        if keyed:
            labels["__meta_citadel_llm_keys"] = "yes"
        return cls(targets=(address.authority,), labels=labels)


class Problem(BaseModel):
    """An error instead of an answer."""

    detail: Literal["no such instance"] = "no such instance"


def overall(services: Sequence[Service], host: HostLabels, reachable: bool = True) -> ServicesHealth:
    """Health of all services of a host; unhealthy if systemd is not `reachable`."""
    good = reachable and all(service.ready for service in services if service.wanted)
    status = Status.HEALTHY if good else Status.UNHEALTHY
    return ServicesHealth(status=status, environment=host.environment, hostname=host.hostname, services=tuple(services))
