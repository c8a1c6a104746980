"""The counters of one instance. They survive restarts of the instance, of the monitor and of the host."""

import json
from signal import SIGKILL
from typing import Any

from pydantic import BaseModel, PrivateAttr, ValidationError

from hxp_enterprise_llm.control.failures import exit_code, kind_of, reason_of
from hxp_enterprise_llm.monitoring.cgroups import Usage
from hxp_enterprise_llm.protocol.failures import Failure, Kind
from hxp_enterprise_llm.protocol.state import InstanceState

DAY_SEC = 86400.0


LATEST = 1e11
"""A later time (seconds since the epoch, the year 5138) is implausible."""


def plausible(at: float, now: float = LATEST) -> bool:
    """Whether a time (seconds since the epoch) is possible for an event that was seen at `now`; False for NaN."""
    return 0 < at <= min(now, LATEST)


class Meter(BaseModel):
    """A kernel counter that starts from 0 in each control group, summed over all groups."""

    settled: float = 0.0
    last: float = 0.0

    @property
    def total(self) -> float:
        """The sum over all groups."""
        return self.settled + self.last

    def read(self, value: float | None) -> None:
        """Update from a reading; a lower value than the last one comes from a new group."""
        if value is None:
            return
        if value < self.last:
            self.settle()
        self.last = value

    def settle(self) -> None:
        """Add the current group's count, because the group no longer exists."""
        self.settled += self.last
        self.last = 0.0


class Event(BaseModel):
    """`count` restarts (`what` is "restart") or failures (`what` is the kind); `at` is in seconds since the epoch."""

    at: float
    what: str
    reason: str = ""
    count: int = 1


class Start(BaseModel):
    """A successful start: when it ended (seconds since the epoch), and how long it took (seconds)."""

    at: float
    seconds: float


class Ledger(BaseModel):
    """The counters of one instance, and the values from which they were last updated, so that nothing counts twice.

    `restarts` counts automatic restarts by systemd. `boot` identifies a boot of the host, `invocation` a run of the
    unit (systemd's InvocationID). Fields and kinds of failure written by another version are kept.
    """

    restarts: int = 0
    failures: dict[str, int] = {}
    last_failure: Failure | None = None
    startup_seconds: float | None = None
    exit_code: int | None = None
    cpu: Meter = Meter()
    oom_kills: Meter = Meter()
    peak_bytes: int | None = None

    boot: int = 0
    invocation: str = ""
    seen_restarts: int = 0
    ended: set[str] = set()
    mended: dict[str, int] = {}
    started: bool = False

    _foreign: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, content: str) -> "Ledger":
        """A ledger from its stored form. Values that this version cannot use are kept for `dump`.

        Raises ValueError if the content is not a JSON object.
        """
        stored = json.loads(content)
        if not isinstance(stored, dict):
            raise ValueError("not a JSON object")
        foreign = {name: value for name, value in stored.items() if name not in cls.model_fields}
        usable = {name: value for name, value in stored.items() if name in cls.model_fields}
        try:
            ledger = cls.model_validate(usable)
        except ValidationError as error:
            foreign |= {name: usable.pop(name) for name in {str(part["loc"][0]) for part in error.errors()}}
            ledger = cls.model_validate(usable)
        ledger._foreign = foreign
        return ledger

    def dump(self) -> str:
        """The stored form. A value that `load` could not use is kept until this version sets the field itself."""
        if not self._foreign:
            return self.model_dump_json()
        initial = Ledger()
        kept = {
            name: value
            for name, value in self._foreign.items()
            if name not in type(self).model_fields or getattr(self, name) == getattr(initial, name)
        }
        return json.dumps(self.model_dump(mode="json") | kept)

    def resume(self, earlier: "Ledger") -> None:
        """Add the counts of the stored ledger, which could not be read before this one began to count."""
        same_boot, same_start = earlier.boot == self.boot, earlier.invocation == self.invocation
        self.restarts += earlier.restarts - (min(earlier.seen_restarts, self.restarts) if same_boot else 0)
        for kind, count in earlier.failures.items():
            twice = (kind in self.ended & earlier.ended) + earlier.mended.get(kind, 0) if same_start else 0
            self.failures[kind] = count + max(0, self.failures.get(kind, 0) - twice)
        self.cpu.settled += earlier.cpu.settled if same_start else earlier.cpu.total
        self.oom_kills.settled += earlier.oom_kills.settled if same_start else earlier.oom_kills.total
        for name in ("last_failure", "startup_seconds", "exit_code", "peak_bytes"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(earlier, name))
        self._foreign = earlier._foreign

    def take_unit(
        self,
        properties: dict[str, Any],
        boot: int,
        now: float,
        oom_kills: int | None = None,
        told: InstanceState | None = None,
    ) -> list[Event | Start]:
        """Update from the properties of the unit; returns the new events and starts.

        `oom_kills` is the kernel's current count. It shows whether a SIGKILL came from the kernel at the memory limit,
        which systemd does not report with OOMPolicy=continue. `told` is the state that the main process of this run has
        written.
        """
        if boot != self.boot:
            self.boot, self.seen_restarts = boot, 0
        invocation = properties.get("InvocationID") or self.invocation
        if invocation != self.invocation:
            self.invocation, self.ended, self.mended, self.started = invocation, set(), {}, False
            self.peak_bytes = None
            self.cpu.settle()
            self.oom_kills.settle()
        found: list[Event | Start] = [*self._restarts(properties, now), *self._end(properties, now, oom_kills, told)]
        code = exit_code(properties)
        self.exit_code = self.exit_code if code is None else code
        began, ready = _moment(properties, "ExecMainStartTimestamp"), _moment(properties, "ActiveEnterTimestamp")
        if properties.get("ActiveState") == "active" and began and ready >= began and not self.started:
            self.started = True
            # A longer start means that the clock was set during it.
            if ready - began <= DAY_SEC:
                self.startup_seconds = ready - began
                found.append(Start(at=ready, seconds=ready - began))
        return found

    def _restarts(self, properties: dict[str, Any], now: float) -> list[Event]:
        seen = int(properties.get("NRestarts") or 0)
        # systemd restarts this count after a manual start.
        new = seen - self.seen_restarts if seen >= self.seen_restarts else seen
        self.seen_restarts = seen
        self.restarts += new
        return [Event(at=now, what="restart", count=new)] if new else []

    def _end(
        self, properties: dict[str, Any], now: float, oom_kills: int | None, told: InstanceState | None
    ) -> list[Event]:
        kind, reason = kind_of(properties), reason_of(properties, told)
        if kind is Kind.SIGNAL and properties.get("ExecMainStatus") == SIGKILL:
            if Kind.OUT_OF_MEMORY in self.ended:
                return []
            if oom_kills is not None and oom_kills > self.oom_kills.last:
                kind, reason = Kind.OUT_OF_MEMORY, "the kernel ended the main process at the memory limit"
        if kind is None or kind in self.ended:
            return []
        self.ended.add(kind)
        at = _moment(properties, "ExecMainExitTimestamp") if kind is not Kind.START_LIMIT_HIT else 0
        return [self._failed(Failure(kind=kind, reason=reason, at=at if plausible(at, now) else now))]

    def take_state(self, state: InstanceState | None, now: float) -> list[Event]:
        """Update from the main process's state; returns the failures that it has recovered from since the last call."""
        if state is None:
            return []
        if state.startup_seconds is not None:
            self.startup_seconds = state.startup_seconds
        found = []
        for kind, count in state.failures.items():
            new = count - self.mended.get(kind, 0)
            if new <= 0:
                continue
            self.mended[kind] = count
            told = state.last_failure if state.last_failure and state.last_failure.kind is kind else None
            # Ignore implausible timestamps.
            at = told.at if told and now - DAY_SEC < told.at <= now else now
            found.append(self._failed(Failure(kind=kind, reason=told.reason if told else "", at=at), new))
        return found

    def _failed(self, failure: Failure, count: int = 1) -> Event:
        self.failures[failure.kind] = self.failures.get(failure.kind, 0) + count
        self.last_failure = failure
        return Event(at=failure.at, what=failure.kind, reason=failure.reason, count=count)

    def take_usage(self, usage: Usage) -> int | None:
        """Update from the kernel's figures; returns the peak memory since the last call (bytes), None if unknown.

        The kernel reports the peak of the whole run, so only a higher value shows the peak since the last call.
        """
        self.cpu.read(usage.cpu_seconds)
        self.oom_kills.read(usage.oom_kills)
        peak, earlier = usage.memory_peak_bytes, self.peak_bytes
        if peak is None or (earlier is not None and peak <= earlier):
            return usage.memory_bytes
        self.peak_bytes = peak
        return peak


def _moment(properties: dict[str, Any], name: str) -> float:
    """A timestamp of systemd (microseconds) as seconds since the epoch; 0 if it is not set."""
    return int(properties.get(name) or 0) / 1e6
