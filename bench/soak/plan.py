"""What happens in a soak, and when: derived from a seed, so that a run can be repeated."""

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass

from faults import FAULTS, Fault, Loses, Settings

MOST_FAILURES, WITHIN_SEC = 2, 300.0
"""At most this many failures of an instance's server in this time: one fewer than its main process recovers from."""


class Act(enum.Enum):
    """What else happens to an instance."""

    RELOAD = "reload"
    KEYS = "key added and revoked"
    HOSTILE = "hostile clients"


@dataclass(frozen=True)
class Subject:
    """An instance of the soak, and what happens to it."""

    name: str
    settings: Settings
    suffers: frozenset[Loses]
    acts: frozenset[Act]

    def takes(self, fault: Fault) -> bool:
        """Whether the fault can be injected into this instance."""
        return fault.loses in self.suffers and (fault.settings or {}).items() <= self.settings.items()


@dataclass(frozen=True)
class Step:
    """A fault, and what follows once the instance serves again; `at` is in seconds since the beginning."""

    at: float
    fault: Fault
    victim: Subject
    act: Act
    subject: Subject


def plan(seed: int, seconds: float, every: float, subjects: Sequence[Subject]) -> list[Step]:
    """The steps of a soak. Every fault and every act comes once, in random order, before any of them comes again."""
    chance = random.Random(seed)  # noqa: S311  to be repeated, not to be unknown
    all_acts = [(act, subject) for subject in subjects for act in sorted(subject.acts, key=lambda act: act.value)]
    faults: list[Fault] = []
    acts: list[tuple[Act, Subject]] = []
    failures: dict[str, list[float]] = {subject.name: [] for subject in subjects}

    def open_to(fault: Fault, at: float) -> list[Subject]:
        recent = {name: sum(at - time < WITHIN_SEC for time in times) for name, times in failures.items()}
        return [
            subject
            for subject in subjects
            if subject.takes(fault) and (fault.loses is not Loses.SERVER or recent[subject.name] < MOST_FAILURES)
        ]

    steps = []
    for number in range(1, int(seconds / every)):
        at = number * every
        if not any(open_to(fault, at) for fault in faults):
            faults += chance.sample(FAULTS, len(FAULTS))
        fault = next(fault for fault in faults if open_to(fault, at))
        faults.remove(fault)
        victim = chance.choice(open_to(fault, at))
        match fault.loses:
            case Loses.SERVER:
                failures[victim.name].append(at)
            case Loses.SERVICE:
                # Another main process remembers no failure.
                failures[victim.name].clear()
            case Loses.NOTHING:
                pass
        acts = acts or chance.sample(all_acts, len(all_acts))
        steps.append(Step(at, fault, victim, *acts.pop()))
    return steps
