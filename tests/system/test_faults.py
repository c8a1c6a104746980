"""Every fault that can be injected on a booted host: time until found, exit status, counter, time until serving again.

docs/faults.md contains the table that these tests print.
"""

from collections.abc import Iterator

import pytest
from faults import FAULTS, Fault, Row, Settings, Victim, hanging_engine

from .conftest import SUMMARY, TINY_MODEL, Host

SETTINGS: Settings = {
    "MODEL": TINY_MODEL, "PORT": 11570, "KV_CACHE_GB": 0.25, "RESTART_SEC": 1,
    "START_TIMEOUT_SEC": 20, "HANG_TIMEOUT_SEC": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    SUMMARY.append("| failure | found after | message | exit status | counters of the monitor | serving again after |")
    SUMMARY.append("|---|---|---|---|---|---|")
    SUMMARY.extend(map(str, rows))


@pytest.fixture
def victim(host: Host) -> Iterator[Victim]:
    host.made.add("faulty")
    with hanging_engine(host.machine):
        yield Victim(host.machine, "faulty", SETTINGS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_found_reported_counted_and_recovered(victim: Victim, table: list[Row], fault: Fault) -> None:
    victim.restart(**(fault.settings or {}))
    row = victim.inject(fault)
    print(row)
    table.append(row)
    if fault.found is not None:
        assert row.found is not None and row.found < fault.found
    assert fault.unexpected(row) == []
    fault.also(victim)
