"""The benchmark's arithmetic, and its page."""

from typing import Any

from bench import report
from bench.rows import MET, MISSED, Bound, Row


def test_verdicts_use_medians_and_ratios() -> None:
    row = Row("start", "start", "s", [30.0, 10.0, 20.0], [9.0, 8.0, 40.0], [Bound(0.45, ratio=True), Bound(8.5)])
    assert row.ratio == 0.45
    assert [verdict for _, verdict in row.verdicts()] == [MET, MISSED]
    assert report.missed([row]) == ["start: start: ≤ 8.5, but it is 9 s"]


def test_bound_may_be_a_minimum() -> None:
    row = Row("load", "throughput", "tokens/s", [100.0], [97.0], [Bound(0.98, ratio=True, least=True)])
    assert [(str(bound), verdict) for bound, verdict in row.verdicts()] == [("≥ 0.98 of plain", MISSED)]


def test_bound_may_be_a_fraction_of_the_start_time() -> None:
    row = Row("start", "engine killed", "s", [20.0], [3.0], [Bound(0.2, start=20.0), Bound(0.1, start=20.0)])
    assert [(str(bound), verdict) for bound, verdict in row.verdicts()] == [
        ("≤ 0.2 of plain's start", MET),
        ("≤ 0.1 of plain's start", MISSED),
    ]
    assert report.missed([row]) == ["start: engine killed: ≤ 0.1 of plain's start, but it is 0.15"]


def test_row_without_plain_side_has_no_ratio_and_misses_ratio_bound() -> None:
    row = Row("host", "size", "MB", [], [300.0], [Bound(600), Bound(1, ratio=True)])
    assert row.ratio is None
    assert [verdict for _, verdict in row.verdicts()] == [MET, MISSED]
    assert report.lines({"rows": [row.as_json()]}) == [
        ("host: size", report.NOTHING, "300 MB", report.NOTHING, "≤ 600", MET),
        ("", "", "", "", "≤ 1 of plain", MISSED),
    ]


def test_update_replaces_remeasured_rows() -> None:
    def made(*rows: Row, **about: str) -> dict[str, Any]:
        return {"about": about, "rows": [row.as_json() for row in rows]}

    first = [Row("load", "throughput", unit, [1.0], [2.0]) for unit in ("tokens/s", "requests/s")]
    again = Row("load", "throughput", "tokens/s", [1.0], [3.0])
    results = report.updated(made(*first, date="1", rounds="3"), made(again, date="2", rounds="3"))
    assert results == made(again, first[1], date="2", rounds="3")
    assert report.differences(results, {"date": "4", "rounds": "1"}) == ["rounds 3"]


def test_performance_page_matches_the_results() -> None:
    results = report.read()
    assert report.PAGE.read_text(encoding="utf-8") == report.page(results)
