"""An interrupted `./build.sh soak` leaves nothing; tests/unit/test_soak.py tests its plan and its verdict."""

import os
import signal
import subprocess

from base_tree import CACHE, PROJECT
from machine import SHUTDOWN_SEC
from needs import PACKAGE
from traces import traces


def test_an_interrupted_soak_cleans_up_after_itself() -> None:
    """Ctrl-C under load; a terminal sends it to every process of the soak."""
    with subprocess.Popen(
        ["/usr/bin/python3", "-m", "bench.soak", "--hours", "0.1", "--seed", "7"],
        cwd=PROJECT,
        env=os.environ | {"CITADEL_BENCH_PACKAGE": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "load: " in line:
                break
        name = f"citadel-soak-{process.pid}"
        assert (CACHE / "machines" / name).exists()
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=2 * SHUTDOWN_SEC)
    print(rest)
    assert process.returncode == 1
    assert "soak: interrupted" in rest
    assert "Traceback" not in rest
    assert not traces(name)
