"""The errors of this library: each with a stable code, and the exit status that an entry point gives it.

Libraries raise these; only the unit's main process and the command line exit.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from hxp_enterprise_llm.settings.grammar import Fault, printable

if TYPE_CHECKING:
    from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


class ExitStatus(IntEnum):
    """Exit statuses of the command line and of the unit's main process; those from 64 are the names of sysexits.h."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3  # as systemctl status
    NO_SUCH_INSTANCE = 4
    UNAVAILABLE = 69  # the port is taken, the address or a GPU is missing
    SOFTWARE = 70  # the engine died
    OUT_OF_MEMORY = 71  # the kernel ended the engine for want of memory
    TEMPORARY = 75  # the engine hung and was ended
    CONFIG = 78  # settings refused or model missing; systemd does not retry


class CitadelError(Exception):
    """Base of every error that this library raises on purpose. The message says what to do next."""

    code = "failed"
    exit_status = ExitStatus.FAILED

    def __init__(self, message: str) -> None:
        # A message may name a file whose name is not UTF-8, and everything it is sent to is.
        super().__init__(printable(message))

    @property
    def fields(self) -> dict[str, str]:
        """What a log record of this error carries besides its words; see `journal`."""
        return {"reason": self.code}


class SettingsRefused(CitadelError):
    """A settings file has faults; `faults` holds all of them.

    `understood` are the settings without what is refused, for who looks for what else is wrong with them.
    """

    code = "settings-refused"
    exit_status = ExitStatus.CONFIG

    def __init__(self, faults: Sequence[Fault], understood: "ServiceConfigSchema | None" = None) -> None:
        self.faults, self.understood = tuple(faults), understood
        super().__init__("\n".join(str(fault) for fault in self.faults))


class ModelMissing(CitadelError):
    """The model that the settings name is not on this host, or is not one that the service can read."""

    code = "model-missing"
    exit_status = ExitStatus.CONFIG


class PortTaken(CitadelError):
    """Something else listens on the instance's port."""

    code = "port-taken"
    exit_status = ExitStatus.UNAVAILABLE


class AddressMissing(CitadelError):
    """The address to listen on is not, or not yet, one of this host."""

    code = "address-missing"
    exit_status = ExitStatus.UNAVAILABLE


class EngineHung(CitadelError):
    """vLLM runs but gets nowhere."""

    code = "engine-hung"
    exit_status = ExitStatus.TEMPORARY


class EngineDied(CitadelError):
    """vLLM, or one of its processes, ended by itself."""

    code = "engine-died"
    exit_status = ExitStatus.SOFTWARE


class OutOfMemory(CitadelError):
    """The kernel ended a process of the service, because it needed more than MEMORY_LIMIT_GB."""

    code = "out-of-memory"
    exit_status = ExitStatus.OUT_OF_MEMORY


class GpuMissing(CitadelError):
    """A GPU that the settings name is not there."""

    code = "gpu-missing"
    exit_status = ExitStatus.UNAVAILABLE


class NoSuchInstance(CitadelError):
    """An instance without a settings file."""

    code = "no-such-instance"
    exit_status = ExitStatus.NO_SUCH_INSTANCE

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no instance {name!r}; citadel-llm list shows all of them")


class NotRunning(CitadelError):
    """An instance does not run, and what was asked for is for one that does."""

    code = "not-running"
    exit_status = ExitStatus.NOT_RUNNING


class SystemdUnreachable(CitadelError):
    """There is no systemd to talk to, or no bus to reach it by."""

    code = "systemd-unreachable"


class NotPermitted(CitadelError):
    """The user may not do that."""

    code = "not-permitted"


class JobFailed(CitadelError):
    """systemd could not do what it was asked to; the message has the unit's own reason.

    `status` is the exit status of the unit's main process, if it had one.
    """

    code = "job-failed"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status == ExitStatus.CONFIG:
            self.exit_status = ExitStatus.CONFIG


class DependencyCycle(CitadelError):
    """Instances that require each other in a circle, so that none can be first; `circle` begins and ends with one."""

    code = "dependency-cycle"
    exit_status = ExitStatus.CONFIG

    def __init__(self, circle: Sequence[str]) -> None:
        self.circle = tuple(circle)
        way = " → ".join(circle)
        super().__init__(f"these instances wait for each other in a circle: {way}; take one out of REQUIRES or AFTER")


class SeveralFailed(CitadelError):
    """More than one instance failed; `errors` has each."""

    code = "several-failed"

    def __init__(self, errors: Sequence[CitadelError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))
