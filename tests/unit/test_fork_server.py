"""The fork server is replaced when it ends, and the reason of its end is logged."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hxp_enterprise_llm.supervisor import fork_server

pytestmark = pytest.mark.starts_processes


class Server:
    """A child of this process in place of multiprocessing's fork server."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.errors: list[Exception] = []

    def pid(self) -> int:
        return self.started[-1].pid

    def start(self) -> None:
        if self.errors:
            raise self.errors.pop()
        self.started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    for child in made.started:
        child.kill()
        child.wait()


def test_a_killed_fork_server_is_replaced_also_after_a_start_that_fails(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    first = server.pid()
    server.errors.append(BlockingIOError(11, "Resource temporarily unavailable"))

    async def run() -> None:
        keeping = asyncio.create_task(fork_server.keep(server.pid, server.start, 0.01))
        os.kill(first, signal.SIGKILL)
        while server.pid() == first:
            assert not keeping.done()
            await asyncio.sleep(0.01)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert f"The fork server (pid {first}) was killed by SIGKILL" in caplog.text
    assert "Resource temporarily unavailable" in caplog.text
