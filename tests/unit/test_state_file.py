import json
import os
from pathlib import Path

from hxp_enterprise_llm.protocol.state import NAME, StateFile
from hxp_enterprise_llm.settings.address import Address


def test_it_counts_by_kind_and_everybody_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        state = StateFile(tmp_path)
        state.started(7.93251, Address(scheme="https", host="::1", port=11500), 4102444800.0)
        state.failed("engine-died", "the engine (pid 7) ended")
        state.failed("engine-died", "the engine (pid 8) ended")
        state.failed("engine-hung", "no token")
    finally:
        os.umask(before)
    written = json.loads((tmp_path / NAME).read_text())
    assert written["startup_seconds"] == 7.933
    assert written["address"] == {"scheme": "https", "host": "::1", "port": 11500}
    assert written["certificate_expires"] == 4102444800.0
    assert written["failures"] == {"engine-died": 2, "engine-hung": 1}
    assert (written["last_failure"]["kind"], written["last_failure"]["reason"]) == ("engine-hung", "no token")
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]
    state.serves(Address(scheme="http", host="::1", port=11500), 0.0)
    assert json.loads((tmp_path / NAME).read_text())["certificate_expires"] is None
