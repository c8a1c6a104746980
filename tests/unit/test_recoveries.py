from hxp_enterprise_llm.supervisor.recoveries import PAUSES_SEC, WINDOW_SEC, Recoveries


def test_pauses_grow_until_recovery_gives_up() -> None:
    recoveries = Recoveries()
    assert [recoveries.pause(second) for second in range(5)] == [*PAUSES_SEC, None, None]


def test_old_failures_no_longer_count() -> None:
    recoveries = Recoveries()
    assert [recoveries.pause(0), recoveries.pause(1)] == list(PAUSES_SEC[:2])
    assert recoveries.pause(WINDOW_SEC + 0.5) == PAUSES_SEC[1]
    assert recoveries.pause(3 * WINDOW_SEC) == PAUSES_SEC[0]
