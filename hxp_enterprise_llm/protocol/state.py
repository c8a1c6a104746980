"""`state.json` in a unit's run-time directory: the phase of its main process, and where clients reach the instance.

The main process writes the file; the monitor and the command read it. The file holds no secret, and every user may
read it. The services' user owns the directory, so an attacker in an engine can write the file: the reader treats it as
hostile.
"""

import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

from hxp_enterprise_llm.protocol.failures import Failure, Kind, escaped, one_line
from hxp_enterprise_llm.settings import regular_files
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.keys import is_loopback

log = logging.getLogger(__name__)

NAME = "state.json"
LARGEST = 65536
"""Size above which the file is not read (bytes); a valid file has a few hundred."""
SENTENCE_LENGTH = 1000
"""Length to which a reason is cut, when written and when read (characters)."""


class Phase(StrEnum):
    """What the main process is doing."""

    CHECKING = "checking"
    IMPORTING = "importing"
    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    RELOADING = "reloading"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


TITLES = {
    Phase.CHECKING: "Checking the settings",
    Phase.IMPORTING: "Importing vLLM",
    Phase.LOADING: "Loading",
    Phase.READY: "Ready",
    Phase.RECOVERING: "Recovering",
    Phase.RELOADING: "Reloading",
    Phase.STOPPING: "Stopping",
    Phase.STOPPED: "Stopped",
    Phase.FAILED: "Failed",
}
"""The phases in words."""


def sentence(phase: Phase, reason: str = "") -> str:
    """A phase and its reason in words."""
    return f"{TITLES[phase]}: {reason}" if reason else TITLES[phase]


class ReloadOutcome(StrEnum):
    """How a reload ended.

    Done: the new settings are in effect. Refused: they were not tried. Reverted: no server could start with them, and
    the old settings are in effect again.
    """

    DONE = "done"
    REFUSED = "refused"
    REVERTED = "reverted"


Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
Moment = Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]
"""Seconds since the epoch."""
Sentence = Annotated[
    str,
    BeforeValidator(escaped),
    StringConstraints(strict=True),
    AfterValidator(lambda text: one_line(text, SENTENCE_LENGTH)),
]
INVOCATION_LENGTH = 64

KINDS, PHASES, OUTCOMES = tuple(Kind), tuple(Phase), tuple(ReloadOutcome)


class LastReload(BaseModel):
    """The last reload: `reason` says why it was refused or reverted, `waited` why requests had to wait during it."""

    model_config = ConfigDict(frozen=True)

    outcome: ReloadOutcome
    at: Moment
    reason: Sentence = ""
    waited: Sentence = ""


class InstanceState(BaseModel):
    """What the main process reports about one run of the unit.

    `phase` is None in a file of an earlier version, which had neither phase nor invocation, and for a phase of a later
    version. `reason` says more about the phase. `invocation` is systemd's id of the run. `address` is where clients
    reach the instance, since its settings may have changed; None if it is not an address of this host: the monitor and
    Prometheus connect to it. `startup_seconds` is how long the last start, or recovery, took until the model had
    answered; `certificate_expires` is when the certificate that clients see expires (seconds since the epoch).
    `failures` counts the failures from which the main process has recovered in this run, by the code of the error.
    """

    model_config = ConfigDict(frozen=True)

    phase: Phase | None = None
    reason: Sentence = ""
    invocation: Annotated[str, StringConstraints(strict=True, max_length=INVOCATION_LENGTH)] = ""
    address: Address | None = None
    startup_seconds: float | None = Field(default=None, ge=0, lt=1e7, allow_inf_nan=False)
    certificate_expires: Moment | None = None
    failures: dict[Kind, Count] = {}
    last_failure: Failure | None = None
    last_reload: LastReload | None = None

    @property
    def sentence(self) -> str:
        """Phase and reason for people; "" without a phase. systemd shows it as STATUS=, and no program reads it."""
        return sentence(self.phase, self.reason) if self.phase else ""

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

    # A field of a later version must not hide the rest: during an upgrade that version may be running already.

    @field_validator("phase", mode="before")
    @classmethod
    def _known_phase(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value not in PHASES else value

    @field_validator("failures", mode="before")
    @classmethod
    def _known_kinds(cls, value: Any) -> Any:
        return {kind: count for kind, count in value.items() if kind in KINDS} if isinstance(value, dict) else value

    @field_validator("last_failure", mode="before")
    @classmethod
    def _known_kind(cls, value: Any) -> Any:
        return None if isinstance(value, dict) and value.get("kind") not in KINDS else value

    @field_validator("last_reload", mode="before")
    @classmethod
    def _known_outcome(cls, value: Any) -> Any:
        return None if isinstance(value, dict) and value.get("outcome") not in OUTCOMES else value


class StateFile:
    """The writer. Each method replaces the file at once; call it before the change is reported to systemd."""

    def __init__(self, directory: Path, invocation: str = "") -> None:
        self._file = directory / NAME
        self.now = InstanceState(invocation=invocation)

    def enter(self, phase: Phase, reason: str = "", reload: LastReload | None = None) -> str:
        """Write a phase, its reason and the reload, if any, that ends with it; returns the sentence for STATUS=."""
        reason = escaped(reason.replace("\n", "; "))
        self._change(phase=phase, reason=reason[:SENTENCE_LENGTH], last_reload=reload or self.now.last_reload)
        return self.now.sentence

    def started(self, seconds: float) -> None:
        """Note how long the last start, or recovery, took until the model had answered; written with the next phase."""
        self.now = self.now.model_copy(update={"startup_seconds": round(seconds, 3)})

    def serves(self, address: Address, expires: float) -> None:
        """Note where clients reach the instance and when its certificate expires (seconds since the epoch, 0: none)."""
        self._change(address=address, certificate_expires=expires or None)

    def reloaded(self, reload: LastReload) -> None:
        """Write how a reload ended that changes no phase."""
        self._change(last_reload=reload)

    def failed(self, code: str, reason: str) -> None:
        """Count a failure from which the main process recovers; `code` is the code of the error."""
        kind, failures = Kind(code), dict(self.now.failures)
        failures[kind] = failures.get(kind, 0) + 1
        self._change(failures=failures, last_failure=Failure(kind=kind, reason=reason, at=time.time()))

    def _change(self, **fields: Any) -> None:
        self.now = self.now.model_copy(update=fields)
        draft = self._file.with_suffix(".new")
        try:
            with draft.open("w", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), 0o644)
                stream.write(self.now.model_dump_json())
            draft.rename(self._file)
        except OSError as error:
            # Not a reason to stop serving.
            log.warning(
                "%s cannot be written, so the monitor and the command miss a change: %s", self._file, error.strerror
            )


def clear(directory: Path, remove_tree: Callable[[Path], object] = shutil.rmtree) -> None:
    """Remove an earlier run's files from the run-time directory, which is kept so that the state stays readable.

    The state itself stays until this run first replaces it. Directories that cannot be removed are renamed: code in a
    compromised engine may have created them where this run needs its own files.
    """
    with os.scandir(directory) as left:
        entries = [Path(entry) for entry in left if entry.name != NAME or not entry.is_file(follow_symlinks=False)]
    for entry in entries:
        try:
            if not entry.is_symlink() and entry.is_dir():
                remove_tree(entry)
            else:
                entry.unlink()
        except (OSError, RecursionError) as error:
            log.warning("%s, left by an earlier run, cannot be removed: %s", entry, error)
            with suppress(OSError):
                entry.rename(directory / f"left-{secrets.token_hex(8)}")


def read(directory: str, instance: str) -> InstanceState | None:
    """The state of an instance, from the services' run-time directory; None if the file is missing or invalid."""
    try:
        folder = os.open(f"{directory}/{instance}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            content = regular_files.read(NAME, LARGEST, follow=False, directory=folder)
        finally:
            os.close(folder)
        return InstanceState.model_validate_json(content)
    except (OSError, ValidationError, ValueError):
        return None
