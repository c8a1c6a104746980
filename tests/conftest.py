"""Makes the tests' own modules importable, and ends a run that this host cannot do."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from needs import unmet

# A shell starts background jobs with SIGINT ignored, which the processes that tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

SYSTEM = Path(__file__).parent / "system"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): what the test needs of the host, see tests/needs.py")


# Last: tests that -k and -m deselect need nothing.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {need for item in items for mark in item.iter_markers("needs") for need in mark.args}
    if any(SYSTEM in item.path.parents for item in items):
        needs |= {"root", "package"}
    missing = unmet(needs)
    if missing:
        raise pytest.UsageError(
            f"this host cannot run the chosen tests:\n{missing}\n`sudo ./build.sh test` provides all of it; "
            "`./build.sh test unit` needs none of it"
        )
