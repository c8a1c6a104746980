"""What is remembered of one instance: counts that only rise, whatever restarts, and what has been counted already."""

from signal import SIGKILL
from typing import Any

from pydantic import BaseModel

from hxp_enterprise_llm.monitoring.cgroups import Usage
from hxp_enterprise_llm.monitoring.failures import Failure, Kind, exit_code, kind_of, reason_of
from hxp_enterprise_llm.monitoring.state_file import InstanceState

DAY_SEC = 86400.0


class Meter(BaseModel):
    """A count of the kernel's that begins anew with each control group, added up over all of them."""

    settled: float = 0.0
    last: float = 0.0

    @property
    def total(self) -> float:
        """Over all groups."""
        return self.settled + self.last

    def read(self, value: float | None) -> None:
        """Take in a reading; a lower one than before is that of a new group."""
        if value is None:
            return
        if value < self.last:
            self.settle()
        self.last = value

    def settle(self) -> None:
        """The group is gone."""
        self.settled += self.last
        self.last = 0.0


class Event(BaseModel):
    """Something that happened `count` times: "restart", or a kind of failure with its reason; `at` as in Failure."""

    at: float
    what: str
    reason: str = ""
    count: int = 1


class Start(BaseModel):
    """A start that ended with a model that answers, and how long it took (seconds)."""

    at: float
    seconds: float


class Ledger(BaseModel):
    """Counts of one instance, with what they were taken from last, so that nothing is counted twice.

    `restarts` are those that systemd did by itself. `boot` tells one run of the host from the next; `invocation` one
    start of the unit (systemd's InvocationID).
    """

    restarts: int = 0
    failures: dict[Kind, int] = {}
    last_failure: Failure | None = None
    startup_seconds: float | None = None
    exit_code: int | None = None
    cpu: Meter = Meter()
    oom_kills: Meter = Meter()
    peak_bytes: int | None = None

    boot: int = 0
    invocation: str = ""
    seen_restarts: int = 0
    ended: set[Kind] = set()
    mended: dict[Kind, int] = {}
    started: bool = False

    def take_unit(
        self, properties: dict[str, Any], boot: int, now: float, oom_kills: int | None = None
    ) -> list[Event | Start]:
        """Take in what systemd says of the unit, and return what that tells of new.

        `oom_kills` is what the kernel counts for it at this moment: it tells why a signal has ended the main process,
        which systemd, with OOMPolicy=continue, does not.
        """
        if boot != self.boot:
            self.boot, self.seen_restarts = boot, 0
        invocation = properties.get("InvocationID") or self.invocation
        if invocation != self.invocation:
            self.invocation, self.ended, self.mended, self.started = invocation, set(), {}, False
            self.peak_bytes = None
            self.cpu.settle()
            self.oom_kills.settle()
        found: list[Event | Start] = [*self._restarts(properties, now), *self._end(properties, now, oom_kills)]
        code = exit_code(properties)
        self.exit_code = self.exit_code if code is None else code
        began, ready = _moment(properties, "ExecMainStartTimestamp"), _moment(properties, "ActiveEnterTimestamp")
        if properties.get("ActiveState") == "active" and began and ready >= began and not self.started:
            self.started, self.startup_seconds = True, ready - began
            found.append(Start(at=ready, seconds=ready - began))
        return found

    def _restarts(self, properties: dict[str, Any], now: float) -> list[Event]:
        seen = int(properties.get("NRestarts") or 0)
        # systemd begins at 0 again with a start by hand.
        new = seen - self.seen_restarts if seen >= self.seen_restarts else seen
        self.seen_restarts = seen
        self.restarts += new
        return [Event(at=now, what="restart", count=new)] if new else []

    def _end(self, properties: dict[str, Any], now: float, oom_kills: int | None) -> list[Event]:
        kind, reason = kind_of(properties), reason_of(properties)
        if kind is Kind.SIGNAL and properties.get("ExecMainStatus") == SIGKILL:
            if Kind.OUT_OF_MEMORY in self.ended:
                return []
            if oom_kills is not None and oom_kills > self.oom_kills.last:
                kind, reason = Kind.OUT_OF_MEMORY, "the kernel ended the main process at the memory limit"
        if kind is None or kind in self.ended:
            return []
        self.ended.add(kind)
        at = _moment(properties, "ExecMainExitTimestamp") if kind is not Kind.START_LIMIT_HIT else 0
        return [self._failed(Failure(kind=kind, reason=reason, at=at or now))]

    def take_state(self, state: InstanceState | None, now: float) -> list[Event]:
        """Take in what the main process says that it has mended itself."""
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
            told = state.last if state.last and state.last.kind is kind else None
            # Of an hour that cannot be, nothing is believed.
            at = told.at if told and now - DAY_SEC < told.at <= now else now
            found.append(self._failed(Failure(kind=kind, reason=told.reason if told else "", at=at), new))
        return found

    def _failed(self, failure: Failure, count: int = 1) -> Event:
        self.failures[failure.kind] = self.failures.get(failure.kind, 0) + count
        self.last_failure = failure
        return Event(at=failure.at, what=failure.kind, reason=failure.reason, count=count)

    def take_usage(self, usage: Usage) -> int | None:
        """Take in the kernel's figures; the memory (bytes) that this reading shows to have been used since the last.

        The kernel's own peak is that of the whole run: it says something of now only when it rises.
        """
        self.cpu.read(usage.cpu_seconds)
        self.oom_kills.read(usage.oom_kills)
        peak, earlier = usage.memory_peak_bytes, self.peak_bytes
        if peak is None or (earlier is not None and peak <= earlier):
            return usage.memory_bytes
        self.peak_bytes = peak
        return peak


def _moment(properties: dict[str, Any], name: str) -> float:
    """One of systemd's times (microseconds) in seconds since the epoch, 0 for never."""
    return int(properties.get(name) or 0) / 1e6
