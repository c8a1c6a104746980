"""A stop fits into the time that systemd gives it."""

import pytest

from hxp_enterprise_llm.settings.keys import STOP_MARGIN_SEC
from hxp_enterprise_llm.supervisor.stop import StopPlan, left


@pytest.mark.parametrize("drain_sec", [0.0, 1.0, 30.0, 3600.0])
def test_all_parts_of_a_stop_end_before_systemd_kills(drain_sec: float) -> None:
    plan = StopPlan.of(drain_sec, 100.0)
    assert plan.begin == 100.0
    assert plan.begin + drain_sec == plan.drained < plan.killed < plan.ended < plan.timeout
    assert plan.timeout - plan.begin == drain_sec + STOP_MARGIN_SEC


def test_no_time_is_left_after_a_deadline() -> None:
    assert left(0.0) == 0
