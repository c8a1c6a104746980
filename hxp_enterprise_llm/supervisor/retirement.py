"""The server that a reload has replaced, on its way out beside whatever goes on."""

import asyncio
import logging

from hxp_enterprise_llm.supervisor.server_process import ServerProcess

log = logging.getLogger(__name__)


class Retirement:
    """One server at a time; a reload waits for the end of the one that the last replaced."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def begin(self, server: ServerProcess, limit: float, *, patient: bool = False) -> None:
        """End a server without cutting a request, if they end within `limit` seconds; `patient` as in `leave`."""

        async def retire() -> None:
            try:
                if not await server.leave(limit, patient=patient):
                    log.warning("Requests were still in flight after %g s and were aborted", limit)
            finally:
                await server.kill()

        self._task = asyncio.create_task(retire())

    async def over(self, timeout: float | None = None) -> bool:
        """Wait until nothing retires any more, `timeout` seconds at most; whether that is so."""
        if self._task:
            await asyncio.wait((self._task,), timeout=timeout)
        return not self._task or self._task.done()

    async def cut(self, within_sec: float | None = None) -> None:
        """Kill the server at once, and wait up to `within_sec` seconds, if given, until it is gone."""
        if self._task:
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=within_sec)
