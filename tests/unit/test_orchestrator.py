import asyncio

import pytest

from hxp_enterprise_llm.control.order import in_order
from hxp_enterprise_llm.settings.errors import CitadelError, DependencyCycle, SeveralFailed
from hxp_enterprise_llm.settings.order import order

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


class Actions:
    """Records the actions, and the highest number of simultaneous actions."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.done: list[str] = []
        self.failing = failing
        self.running = self.most = 0

    async def __call__(self, name: str) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        if name in self.failing:
            raise CitadelError(f"{name} broke")
        self.done.append(name)


@pytest.fixture
def chain(root: Root) -> Root:
    """c requires b, b requires a; x is alone."""
    root.instance("a", GOOD)
    root.instance("b", GOOD + "REQUIRES=a\n")
    root.instance("c", GOOD + "REQUIRES=b\n")
    root.instance("x", GOOD)
    return root


def run(actions: Actions, names: list[str], root: Root, **options: bool | int) -> None:
    asyncio.run(in_order(names, str(root), actions, **options))  # type: ignore[arg-type]


def test_required_instances_are_started_first(chain: Root) -> None:
    actions = Actions()
    run(actions, ["c"], chain, and_required=True)
    assert actions.done == ["a", "b", "c"]
    actions = Actions()
    run(actions, ["c"], chain)
    assert actions.done == ["c"]


def test_stop_runs_in_reverse_order_and_stops_no_other_instance(chain: Root) -> None:
    actions = Actions()
    run(actions, ["a", "c", "b"], chain, reverse=True)
    assert actions.done == ["c", "b", "a"]
    actions = Actions()
    run(actions, ["b"], chain, reverse=True)
    assert actions.done == ["b"]


def test_failed_start_skips_only_dependent_instances(chain: Root) -> None:
    actions = Actions(failing=("a",))
    with pytest.raises(SeveralFailed) as failed:
        run(actions, ["c", "x"], chain, and_required=True)
    assert str(failed.value).splitlines() == [
        "a broke",
        "b: not started, because a failed",
        "c: not started, because b failed",
    ]
    assert actions.done == ["x"]


def test_independent_instances_start_in_parallel_up_to_a_limit(root: Root) -> None:
    for name in "abcdef":
        root.instance(name, GOOD)
    actions = Actions()
    run(actions, list("abcdef"), root, at_once=3)
    assert actions.most == 3
    assert sorted(actions.done) == list("abcdef")


def test_dependency_cycle_is_named_and_affects_no_other_instance(root: Root) -> None:
    root.instance("a", GOOD + "REQUIRES=b\n")
    root.instance("b", GOOD + "AFTER=a\n")
    with pytest.raises(DependencyCycle, match=r"in a cycle: . → . → ."):
        run(Actions(), ["a"], root, and_required=True)
    # Other instances are not affected.
    root.instance("x", GOOD)
    actions = Actions()
    run(actions, ["x"], root, and_required=True)
    assert actions.done == ["x"]
    assert order(["b", "a"], {"a": [], "b": ["a"]}) == ["a", "b"]
