"""Actions on several instances: in the order of their dependencies, some at the same time. No processes, no D-Bus."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from graphlib import TopologicalSorter

from hxp_enterprise_llm.settings.errors import CitadelError, SeveralFailed
from hxp_enterprise_llm.settings.order import dependencies, order, with_required

CORES_PER_START = 2
"""Cores that a loading instance keeps busy: the import uses one, weights and threads use more."""


def at_once_limit() -> int:
    """How many instances this host can load at the same time."""
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
    """Run `act` for each instance in the order of the dependencies; in reverse order, to stop instances.

    With `and_required`, also run it for the instances that these require, directly or indirectly. `act` runs for
    independent instances at the same time, `at_once` at most. Instances that require a failed instance are skipped.
    Raises the failure, or SeveralFailed with all failures.
    """
    known = dependencies(root)
    requires = {name: needs for name, (needs, _) in known.items()}
    after = {name: earlier for name, (_, earlier) in known.items()}
    todo = with_required(names, requires) if and_required else set(names)
    # A cycle among other instances does not matter here.
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
