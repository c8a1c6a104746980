"""How the last run of a unit failed, from its properties (org.freedesktop.systemd1(5))."""

from collections.abc import Mapping
from signal import Signals
from typing import Any

from hxp_enterprise_llm.protocol.failures import Kind, one_line
from hxp_enterprise_llm.protocol.state import SENTENCE_LENGTH, InstanceState, Phase
from hxp_enterprise_llm.settings.errors import ExitStatus

BY_RESULT = {
    "oom-kill": Kind.OUT_OF_MEMORY,
    "signal": Kind.SIGNAL,
    "watchdog": Kind.WATCHDOG,
    "timeout": Kind.TIMEOUT,
    "core-dump": Kind.CORE_DUMP,
    "start-limit-hit": Kind.START_LIMIT_HIT,
    # systemd could not start the process: no memory, no credential, no directory.
    "resources": Kind.UNAVAILABLE,
}
"""Kinds by the unit's Result; all other failures are told apart by the main process's exit status."""

BY_STATUS: dict[int, Kind] = {
    ExitStatus.UNAVAILABLE: Kind.UNAVAILABLE,
    ExitStatus.SOFTWARE: Kind.ENGINE_DIED,
    ExitStatus.OUT_OF_MEMORY: Kind.OUT_OF_MEMORY,
    ExitStatus.TEMPORARY: Kind.ENGINE_HUNG,
    ExitStatus.CONFIG: Kind.SETTINGS_REFUSED,
}
"""Kinds by the main process's exit status; see docs/operating.md."""

ENDED_BY_SIGNAL = (2, 3)
"""CLD_KILLED and CLD_DUMPED: with these codes the status is the number of a signal (waitid(2))."""


def kind_of(properties: Mapping[str, Any]) -> Kind | None:
    """The kind of failure of a unit's last run; None if it did not fail."""
    result = str(properties.get("Result") or "success")
    if result == "success":
        return None
    return BY_RESULT.get(result) or BY_STATUS.get(int(properties.get("ExecMainStatus") or 0), Kind.EXIT_CODE)


def exit_code(properties: Mapping[str, Any]) -> int | None:
    """The last exit status of the main process; after a signal, 128 plus its number. None while it runs."""
    if not properties.get("ExecMainExitTimestamp"):
        return None
    status = int(properties.get("ExecMainStatus") or 0)
    return status + 128 if properties.get("ExecMainCode") in ENDED_BY_SIGNAL else status


def reason_of(properties: Mapping[str, Any], told: InstanceState | None) -> str:
    """Why the last run of a unit failed, from the main process if it ended by itself, else from systemd.

    `told` is the state that the main process wrote in that run.
    """
    result, code = properties.get("Result"), exit_code(properties)
    if result == "exit-code" and code in BY_STATUS:
        if told and told.phase is Phase.FAILED:
            return told.reason
        if not told or not told.phase:
            return unit_text(properties)
    if code is None or result == "start-limit-hit":
        return f"systemd: {result}"
    if properties.get("ExecMainCode") in ENDED_BY_SIGNAL:
        text = f"the main process was killed by {_signal_name(code - 128)}"
        return text if result == "signal" else f"systemd: {result}; {text}"
    return f"systemd: {result}; the main process ended with exit status {code}"


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def unit_text(properties: Mapping[str, Any]) -> str:
    """systemd's own text about a unit whose main process has written no state; for people only."""
    return one_line(properties.get("StatusText") or "", SENTENCE_LENGTH)
