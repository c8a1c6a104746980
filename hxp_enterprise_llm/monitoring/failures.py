"""How a service can fail, in one word each: the label `result` of the metrics and the kinds of the report."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hxp_enterprise_llm.settings.errors import ExitStatus

REASON_LENGTH = 300
"""How much of somebody's words is kept (characters)."""


class Kind(StrEnum):
    """What went wrong."""

    ENGINE_DIED = "engine-died"
    ENGINE_HUNG = "engine-hung"
    OUT_OF_MEMORY = "out-of-memory"
    SETTINGS_REFUSED = "settings-refused"
    UNAVAILABLE = "unavailable"
    SIGNAL = "signal"
    WATCHDOG = "watchdog"
    TIMEOUT = "timeout"
    CORE_DUMP = "core-dump"
    START_LIMIT_HIT = "start-limit-hit"
    EXIT_CODE = "exit-code"


BY_RESULT = {
    "oom-kill": Kind.OUT_OF_MEMORY,
    "signal": Kind.SIGNAL,
    "watchdog": Kind.WATCHDOG,
    "timeout": Kind.TIMEOUT,
    "core-dump": Kind.CORE_DUMP,
    "start-limit-hit": Kind.START_LIMIT_HIT,
    # systemd could not even start the process: no memory, no credential, no directory.
    "resources": Kind.UNAVAILABLE,
}
"""From a service unit's Result (org.freedesktop.systemd1(5)); every other failure is told apart by exit status."""

BY_STATUS: dict[int, Kind] = {
    ExitStatus.UNAVAILABLE: Kind.UNAVAILABLE,
    ExitStatus.SOFTWARE: Kind.ENGINE_DIED,
    ExitStatus.OUT_OF_MEMORY: Kind.OUT_OF_MEMORY,
    ExitStatus.TEMPORARY: Kind.ENGINE_HUNG,
    ExitStatus.CONFIG: Kind.SETTINGS_REFUSED,
}
"""From the main process's exit status, see the README."""

ENDED_BY_SIGNAL = (2, 3)
"""CLD_KILLED and CLD_DUMPED, of which the status is a signal's number (waitid(2))."""


class Failure(BaseModel):
    """One failure: what, in whose words, and when (seconds since the epoch)."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    reason: str = Field(max_length=REASON_LENGTH)
    at: float = Field(ge=0, lt=1e11, allow_inf_nan=False)


def kind_of(properties: dict[str, Any]) -> Kind | None:
    """How the last run of a unit failed; None if it did not."""
    result = str(properties.get("Result") or "success")
    if result == "success":
        return None
    return BY_RESULT.get(result) or BY_STATUS.get(int(properties.get("ExecMainStatus") or 0), Kind.EXIT_CODE)


def exit_code(properties: dict[str, Any]) -> int | None:
    """The last exit status of the main process, a signal as 128 and its number, as shells say; None while it runs."""
    if not properties.get("ExecMainExitTimestamp"):
        return None
    status = int(properties.get("ExecMainStatus") or 0)
    return status + 128 if properties.get("ExecMainCode") in ENDED_BY_SIGNAL else status


def reason_of(properties: dict[str, Any]) -> str:
    """Why the last run of a unit failed: in its own words where it ended by itself, else in systemd's."""
    result, code = properties.get("Result"), exit_code(properties)
    if result == "exit-code" and code in BY_STATUS:
        return words(properties.get("StatusText", ""))
    if code is None or result == "start-limit-hit":
        return f"systemd: {result}"
    if properties.get("ExecMainCode") in ENDED_BY_SIGNAL:
        return f"systemd: {result}; the main process was ended by signal {code - 128}"
    return f"systemd: {result}; the main process ended with exit status {code}"


def words(text: Any) -> str:
    """What somebody else says, on one line, without control characters, and not too much of it."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * REASON_LENGTH]).split())[
        :REASON_LENGTH
    ]
