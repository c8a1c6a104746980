"""The kinds of failure, one word each: the label `result` of the metrics and the kinds in the report."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

REASON_LENGTH = 300
"""Length to which the reason of a failure is cut (characters)."""


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


def one_line(text: Any, length: int = REASON_LENGTH) -> str:
    """Text from another process on one line, without control characters and cut to `length` characters."""
    printable = "".join(character if character.isprintable() else " " for character in str(text)[: 4 * length])
    return " ".join(printable.split())[:length]


def escaped(text: Any) -> Any:
    """Text with the bytes that are not UTF-8, as in some file names, written as escapes: JSON cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


class Failure(BaseModel):
    """One failure: its kind, its reason, and its time (seconds since the epoch)."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    reason: Annotated[str, BeforeValidator(escaped), StringConstraints(strict=True), AfterValidator(one_line)] = ""
    at: float = Field(ge=0, lt=1e11, allow_inf_nan=False)
