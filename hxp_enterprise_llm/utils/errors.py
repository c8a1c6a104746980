"""The errors of this library: each with a stable code, and the exit status that an entry point gives it.

Libraries raise these; only the unit's main process and the command line exit.
"""

from collections.abc import Sequence
from enum import IntEnum

from hxp_enterprise_llm.utils.settings_file import Fault


class ExitStatus(IntEnum):
    """Exit statuses of the unit's main process. The values from 64 are those of sysexits.h."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69  # the port is taken, or a GPU is missing
    SOFTWARE = 70  # the engine died
    TEMPORARY = 75  # the engine hung and was ended
    CONFIG = 78  # settings refused or model missing; systemd does not retry


class CitadelError(Exception):
    """Base of every error that this library raises on purpose. The message says what to do next."""

    code = "failed"
    exit_status = ExitStatus.FAILED


class SettingsRefused(CitadelError):
    """A settings file has faults; `faults` holds all of them."""

    code = "settings-refused"
    exit_status = ExitStatus.CONFIG

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class ModelMissing(CitadelError):
    """The model that the settings name is not on this host, or is not one that the service can read."""

    code = "model-missing"
    exit_status = ExitStatus.CONFIG


class PortTaken(CitadelError):
    """Something else listens on the instance's port."""

    code = "port-taken"
    exit_status = ExitStatus.UNAVAILABLE


class EngineDied(CitadelError):
    """vLLM, or one of its processes, ended by itself."""

    code = "engine-died"
    exit_status = ExitStatus.SOFTWARE


class GpuMissing(CitadelError):
    """A GPU that the settings name is not there."""

    code = "gpu-missing"
    exit_status = ExitStatus.UNAVAILABLE
