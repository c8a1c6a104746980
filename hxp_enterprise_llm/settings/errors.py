"""The errors of this library, each with a stable code and the exit status of an entry point that it ends.

Libraries raise these errors; only the main process of a unit and the command line exit.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from hxp_enterprise_llm.settings.grammar import SettingsFinding, printable

if TYPE_CHECKING:
    from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


class ExitStatus(IntEnum):
    """Exit statuses of the command line and of the main process; from 64 on, the names are those of sysexits.h."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3  # as systemctl status
    NO_SUCH_INSTANCE = 4
    UNAVAILABLE = 69  # the port is in use, the address or a GPU is missing
    SOFTWARE = 70  # the engine died
    OUT_OF_MEMORY = 71  # the kernel killed the engine: out of memory
    TEMPORARY = 75  # the engine hung and was stopped
    CONFIG = 78  # settings refused or model missing; systemd does not retry


class CitadelError(Exception):
    """Base of every error that this library raises. The message says what to do next."""

    code = "failed"
    exit_status = ExitStatus.FAILED

    def __init__(self, message: str) -> None:
        # A message may contain a file name that is not UTF-8; systemd, the journal and terminals expect UTF-8.
        super().__init__(printable(message))

    @property
    def fields(self) -> dict[str, str]:
        """The additional fields of a log record of this error; see `system.journal`."""
        return {"reason": self.code}


class SettingsRefused(CitadelError):
    """A settings file has errors; `findings` holds all of them.

    `understood` are the settings without the refused values, in which further checks look for further errors.
    """

    code = "settings-refused"
    exit_status = ExitStatus.CONFIG

    def __init__(self, findings: Sequence[SettingsFinding], understood: "ServiceConfigSchema | None" = None) -> None:
        self.findings, self.understood = tuple(findings), understood
        super().__init__("\n".join(str(finding) for finding in self.findings))


class ModelMissing(CitadelError):
    """The model in the settings is not on this host, or the service cannot read it."""

    code = "model-missing"
    exit_status = ExitStatus.CONFIG


class PortTaken(CitadelError):
    """Another process listens on the port of the instance."""

    code = "port-taken"
    exit_status = ExitStatus.UNAVAILABLE


class AddressMissing(CitadelError):
    """The address to listen on is not, or not yet, an address of this host."""

    code = "address-missing"
    exit_status = ExitStatus.UNAVAILABLE


class EngineHung(CitadelError):
    """vLLM runs but makes no progress."""

    code = "engine-hung"
    exit_status = ExitStatus.TEMPORARY


class EngineDied(CitadelError):
    """vLLM, or one of its processes, ended unexpectedly."""

    code = "engine-died"
    exit_status = ExitStatus.SOFTWARE


class OutOfMemory(CitadelError):
    """The kernel killed a process of the service, because the service needed more than MEMORY_LIMIT_GB."""

    code = "out-of-memory"
    exit_status = ExitStatus.OUT_OF_MEMORY


class GpuMissing(CitadelError):
    """A GPU in the settings is missing on this host."""

    code = "gpu-missing"
    exit_status = ExitStatus.UNAVAILABLE


class NoSuchInstance(CitadelError):
    """The instance has no settings file."""

    code = "no-such-instance"
    exit_status = ExitStatus.NO_SUCH_INSTANCE

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no instance {name!r}; citadel-llm list shows all of them")


class NotRunning(CitadelError):
    """The instance is not running, and the requested action needs a running instance."""

    code = "not-running"
    exit_status = ExitStatus.NOT_RUNNING


class SystemdUnreachable(CitadelError):
    """systemd is not running, or there is no bus to reach it."""

    code = "systemd-unreachable"


class NotPermitted(CitadelError):
    """The user lacks the permission for the action."""

    code = "not-permitted"


class JobFailed(CitadelError):
    """A job of systemd failed; the message has the unit's own reason.

    `status` is the exit status of the main process, if the unit had one.
    """

    code = "job-failed"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status == ExitStatus.CONFIG:
            self.exit_status = ExitStatus.CONFIG


class DependencyCycle(CitadelError):
    """Instances require each other in a cycle, so none can start first; `cycle` starts and ends with the same one."""

    code = "dependency-cycle"
    exit_status = ExitStatus.CONFIG

    def __init__(self, cycle: Sequence[str]) -> None:
        self.cycle = tuple(cycle)
        way = " → ".join(cycle)
        super().__init__(f"these instances wait for each other in a cycle: {way}; remove one from REQUIRES or AFTER")


class SeveralFailed(CitadelError):
    """More than one instance failed; `errors` holds the error of each."""

    code = "several-failed"

    def __init__(self, errors: Sequence[CitadelError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))
