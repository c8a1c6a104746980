"""The names by which other processes refer to the worker: they must import neither vLLM nor a module that does."""

import os
from typing import Any

MIDDLEWARE = "hxp_enterprise_llm.worker.traffic.Traffic"
"""ASGI middleware, which vLLM loads by this name."""
PRELOAD = "hxp_enterprise_llm.worker.preload"
"""Module that the fork server imports, so that each server starts with vLLM in memory."""
BACKLOG = 2048
"""How many connections may wait while no server accepts them; the kernel limits it to net.core.somaxconn."""


def serve(*arguments: Any, **options: Any) -> None:
    """Run `worker.server.serve` as the leader of a process group; only the server process imports it."""
    # Before anything else can start a process: the main process kills the server by its group.
    os.setpgid(0, 0)
    from hxp_enterprise_llm.worker.server import serve

    serve(*arguments, **options)
