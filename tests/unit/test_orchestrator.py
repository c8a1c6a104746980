import asyncio

import pytest

from hxp_enterprise_llm.control.order import in_order
from hxp_enterprise_llm.settings.errors import CitadelError, DependencyCycle, SeveralFailed
from hxp_enterprise_llm.settings.order import order

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


class Actions:
    """Records what is done, and how much of it at once."""

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


def test_what_is_required_comes_first_and_along(chain: Root) -> None:
    actions = Actions()
    run(actions, ["c"], chain, and_required=True)
    assert actions.done == ["a", "b", "c"]
    actions = Actions()
    run(actions, ["c"], chain)
    assert actions.done == ["c"]


def test_stopping_goes_in_reverse_and_takes_nothing_along(chain: Root) -> None:
    actions = Actions()
    run(actions, ["a", "c", "b"], chain, reverse=True)
    assert actions.done == ["c", "b", "a"]
    actions = Actions()
    run(actions, ["b"], chain, reverse=True)
    assert actions.done == ["b"]


def test_a_failure_stops_its_dependants_with_the_reason_and_no_other(chain: Root) -> None:
    actions = Actions(failing=("a",))
    with pytest.raises(SeveralFailed) as failed:
        run(actions, ["c", "x"], chain, and_required=True)
    assert str(failed.value).splitlines() == [
        "a broke",
        "b: not started, because a failed",
        "c: not started, because b failed",
    ]
    assert actions.done == ["x"]


def test_independent_ones_side_by_side_but_bounded(root: Root) -> None:
    for name in "abcdef":
        root.instance(name, GOOD)
    actions = Actions()
    run(actions, list("abcdef"), root, at_once=3)
    assert actions.most == 3
    assert sorted(actions.done) == list("abcdef")


def test_a_cycle_is_named(root: Root) -> None:
    root.instance("a", GOOD + "REQUIRES=b\n")
    root.instance("b", GOOD + "AFTER=a\n")
    with pytest.raises(DependencyCycle, match=r"in a cycle: . → . → ."):
        run(Actions(), ["a"], root, and_required=True)
    # And is nobody else's business.
    root.instance("x", GOOD)
    actions = Actions()
    run(actions, ["x"], root, and_required=True)
    assert actions.done == ["x"]
    assert order(["b", "a"], {"a": [], "b": ["a"]}) == ["a", "b"]
