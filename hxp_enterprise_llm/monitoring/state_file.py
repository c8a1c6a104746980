"""What a unit's main process says of itself in /run/citadel-llm/<instance>/state.json.

The services' user writes that directory, and whoever takes over an engine is that user: it is read as hostile.
"""

import os
import socket
import stat
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from hxp_enterprise_llm.monitoring.failures import Failure, Kind, words
from hxp_enterprise_llm.protocol.state import NAME
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.keys import is_loopback

LARGEST = 65536
"""Size of a file that is read (bytes); a real one has a few hundred."""

KINDS = tuple(Kind)

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]


class LastFailure(BaseModel):
    """The last failure that the main process mended."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    reason: Annotated[str, StringConstraints(strict=True)] = ""
    at: float = Field(ge=0, lt=1e11, allow_inf_nan=False)


class InstanceState(BaseModel):
    """Where it is reached, its start-up time (seconds), the failures that its main process has mended, and when its
    certificate expires (seconds since the epoch).

    `address` is None if it is none of this host: the monitor, and Prometheus by its word, ask there.
    """

    model_config = ConfigDict(frozen=True)

    address: Address | None = None
    startup_seconds: float | None = Field(default=None, ge=0, lt=1e7, allow_inf_nan=False)
    certificate_expires: float | None = Field(default=None, ge=0, lt=1e11, allow_inf_nan=False)
    failures: dict[Kind, Count] = {}
    last_failure: LastFailure | None = None

    @field_validator("address")
    @classmethod
    def _of_this_host(cls, value: Address | None) -> Address | None:
        if value and not is_loopback(value.host):
            with socket.socket(socket.AF_INET6 if ":" in value.host else socket.AF_INET) as probe:
                try:
                    probe.bind((value.host, 0))
                except OSError:
                    return None
        return value

    @field_validator("failures", mode="before")
    @classmethod
    def _known_kinds(cls, value: Any) -> Any:
        # One of a later version, while its package is being upgraded, must not hide the others.
        return {kind: count for kind, count in value.items() if kind in KINDS} if isinstance(value, dict) else value

    @field_validator("last_failure", mode="before")
    @classmethod
    def _known_kind(cls, value: Any) -> Any:
        return value if isinstance(value, dict) and value.get("kind") in KINDS else None

    @property
    def last(self) -> Failure | None:
        """The last failure, its words cut to what is kept."""
        told = self.last_failure
        return Failure(kind=told.kind, reason=words(told.reason), at=told.at) if told else None


def read(directory: str, instance: str) -> InstanceState | None:
    """The state of an instance below the services' run-time directory; None if there is none, or none to believe."""
    try:
        folder = os.open(f"{directory}/{instance}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # O_NONBLOCK: opening a pipe would wait for its other end.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(NAME, flags, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            content = os.read(file, LARGEST + 1)
        finally:
            os.close(file)
        return InstanceState.model_validate_json(content) if len(content) <= LARGEST else None
    except (OSError, ValidationError, ValueError):
        return None
