"""The server that a reload has replaced: it finishes its requests while the new server serves."""

import asyncio
import logging

from hxp_enterprise_llm.supervisor.server_process import ServerProcess

log = logging.getLogger(__name__)


class Retirement:
    """Holds one server at a time: a reload waits until the server that the previous reload replaced has ended."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def begin(self, server: ServerProcess, limit: float, *, patient: bool = False) -> None:
        """End a server after its requests, or after `limit` seconds; `patient` as in `ServerProcess.leave`."""

        async def retire() -> None:
            try:
                if not await server.leave(limit, patient=patient):
                    log.warning("Requests were still in flight after %g s and were aborted", limit)
            finally:
                await server.kill()

        self._task = asyncio.create_task(retire())

    async def over(self, timeout: float | None = None) -> bool:
        """Wait until the retiring server, if any, has ended; False if it has not within `timeout` seconds."""
        if self._task:
            await asyncio.wait((self._task,), timeout=timeout)
        return not self._task or self._task.done()

    async def cut(self, within_sec: float | None = None) -> None:
        """Kill the retiring server at once, and wait up to `within_sec` seconds, if given, until it has ended."""
        if self._task:
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=within_sec)
