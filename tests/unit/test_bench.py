"""The benchmark's arithmetic, and its page."""

import json

from bench import report
from bench.rows import MET, MISSED, Bound, Row


def test_verdicts_are_on_medians_and_ratios() -> None:
    row = Row("start", "start", "s", [30.0, 10.0, 20.0], [9.0, 8.0, 40.0], [Bound(0.45, ratio=True), Bound(8.5)])
    assert row.ratio == 0.45
    assert [verdict for _, verdict in row.verdicts()] == [MET, MISSED]
    assert report.missed([row]) == ["start: ≤ 8.5, but it is 9 s"]


def test_a_bound_may_be_a_least_one() -> None:
    row = Row("load", "throughput", "tokens/s", [100.0], [97.0], [Bound(0.98, ratio=True, least=True)])
    assert [(str(bound), verdict) for bound, verdict in row.verdicts()] == [("≥ 0.98 of plain", MISSED)]


def test_what_has_no_other_side_has_no_ratio_and_misses_a_bound_on_one() -> None:
    row = Row("host", "size", "MB", [], [300.0], [Bound(600), Bound(1, ratio=True)])
    assert row.ratio is None
    assert [verdict for _, verdict in row.verdicts()] == [MET, MISSED]
    assert report.lines({"rows": [row.plainly()]}) == [
        ("host: size", report.NOTHING, "300 MB", report.NOTHING, "≤ 600", MET),
        ("", "", "", "", "≤ 1 of plain", MISSED),
    ]


def test_the_page_is_made_of_the_results() -> None:
    results = json.loads(report.RESULTS.read_text(encoding="utf-8"))
    assert report.PAGE.read_text(encoding="utf-8") == report.page(results)
