"""A server that cannot be started: the reason in the error."""

import asyncio
import subprocess

import pytest

from hxp_enterprise_llm.settings.errors import EngineDied
from hxp_enterprise_llm.supervisor import fork_server
from hxp_enterprise_llm.supervisor.server_process import ServerProcess
from hxp_enterprise_llm.supervisor.startup import bring_up

pytestmark = pytest.mark.starts_processes


class LostConnection(ServerProcess):
    """A server whose fork server closes the connection."""

    def __init__(self) -> None:
        pass

    async def start(self) -> None:
        raise EOFError("unexpected EOF")


def test_a_fork_server_that_ends_after_its_connection_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "600"]) as ending:
        monkeypatch.setattr(fork_server, "pid", lambda: ending.pid)

        async def start() -> None:
            asyncio.get_running_loop().call_later(0.2, ending.kill)
            await bring_up(
                LostConnection(),
                asyncio.Event(),
                60,
                on_import=lambda: None,
                answer=lambda: None,
                feed=lambda progress: None,
                file="/etc/default/citadel-llm-x",
            )

        try:
            with pytest.raises(EngineDied, match=rf"the fork server \(pid {ending.pid}\) was killed by SIGKILL"):
                asyncio.run(start())
        finally:
            ending.kill()
