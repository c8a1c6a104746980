"""Many instances: which before which, and how many at once. No processes, no D-Bus."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from hxp_enterprise_llm.utils import config
from hxp_enterprise_llm.utils.errors import CitadelError, DependencyCycle, SettingsRefused, SeveralFailed

CORES_PER_START = 2
"""Cores that one loading instance keeps busy: the import runs on one, weights and threads on more."""


def dependencies(root: str = "/") -> dict[str, tuple[set[str], set[str]]]:
    """What each instance requires, and what it starts after (its requirements among them)."""
    found = {}
    for name in config.instance_names(root):
        try:
            settings, _ = config.load(name, root)
        except SettingsRefused:
            # Its start fails with the reason; nothing is to be waited for.
            found[name] = (set[str](), set[str]())
        else:
            requires = set(settings.requires) - {name}
            found[name] = (requires, (requires | set(settings.after)) - {name})
    return found


def order(names: Iterable[str], before: Mapping[str, Iterable[str]]) -> list[str]:
    """`names` sorted so that each comes after those in `before` of it. Raises DependencyCycle naming the cycle."""
    wanted = set(names)
    try:
        everything = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise DependencyCycle(error.args[1]) from None
    return [name for name in everything if name in wanted]


def with_required(names: Iterable[str], requires: Mapping[str, Iterable[str]]) -> set[str]:
    """`names` and everything that they require, directly or not."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += requires.get(name, ())
    return found


def at_once_limit() -> int:
    """How many instances this host can load side by side."""
    return max(1, (os.cpu_count() or 1) // CORES_PER_START)


async def in_order(
    names: Iterable[str],
    root: str,
    act: Callable[[str], Awaitable[None]],
    *,
    reverse: bool = False,
    and_required: bool = False,
    at_once: int | None = None,
) -> None:
    """Run `act` for each instance, in the order of their dependencies or, to stop them, in its reverse.

    With `and_required` also for those that they require, directly or not. Independent ones run side by side, no more
    than `at_once`. After a failure those that require the failed one are not tried. Raises the failure, or
    SeveralFailed with all of them.
    """
    known = dependencies(root)
    requires = {name: needs for name, (needs, _) in known.items()}
    after = {name: earlier for name, (_, earlier) in known.items()}
    todo = with_required(names, requires) if and_required else set(names)
    # A circle among others is theirs to mend.
    order(todo, {name: after.get(name, set()) & todo for name in todo})
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name in todo:
        sorter.add(name)
        for earlier in after.get(name, set()) & todo:
            sorter.add(earlier, name) if reverse else sorter.add(name, earlier)
    sorter.prepare()
    failures: dict[str, CitadelError] = {}
    slots = asyncio.Semaphore(at_once or at_once_limit())

    async def run(name: str) -> str:
        async with slots:
            broken = sorted(requires.get(name, set()) & failures.keys())
            if broken and not reverse:
                failures[name] = CitadelError(f"{name}: not started, because {', '.join(broken)} failed")
                return name
            try:
                await act(name)
            except CitadelError as error:
                failures[name] = error
            return name

    pending: set[asyncio.Task[str]] = set()
    while sorter.is_active():
        pending |= {asyncio.create_task(run(name)) for name in sorter.get_ready()}
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            sorter.done(task.result())
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        raise SeveralFailed(list(failures.values()))
