"""The order of instances, from REQUIRES and AFTER in their settings."""

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.errors import DependencyCycle, SettingsRefused


def dependencies(root: str = "/", drafts: Mapping[str, str] | None = None) -> dict[str, tuple[set[str], set[str]]]:
    """The instances that each instance requires, and those it starts after, which include the required ones.

    `drafts` are files to read for some instances instead of their settings files.
    """
    found = {}
    for name in config.instance_names(root):
        try:
            settings, _ = config.load(name, root, (drafts or {}).get(name))
        except SettingsRefused:
            # Its start fails and reports the reason, so it waits for nothing.
            found[name] = (set[str](), set[str]())
        else:
            requires = set(settings.requires) - {name}
            found[name] = (requires, (requires | set(settings.after)) - {name})
    return found


def order(names: Iterable[str], before: Mapping[str, Iterable[str]]) -> list[str]:
    """`names` sorted so that each instance comes after the instances in its `before`.

    Raises DependencyCycle, which names the cycle.
    """
    wanted = set(names)
    try:
        everything = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise DependencyCycle(error.args[1]) from None
    return [name for name in everything if name in wanted]


def with_required(names: Iterable[str], requires: Mapping[str, Iterable[str]]) -> set[str]:
    """`names` and all instances that they require, directly or indirectly."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += requires.get(name, ())
    return found
