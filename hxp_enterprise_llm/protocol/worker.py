"""The worker as other processes name it: they never import vLLM, or anything that does."""

import os
from typing import Any

MIDDLEWARE = "hxp_enterprise_llm.worker.traffic.Traffic"
"""ASGI middleware that vLLM loads by this name."""
PRELOAD = "hxp_enterprise_llm.worker.preload"
"""Module that the fork server imports, so that each server finds vLLM in its memory."""
BACKLOG = 2048
"""Connections that wait while no server accepts them; the kernel caps the number at net.core.somaxconn."""


def serve(*arguments: Any, **options: Any) -> None:
    """Run `worker.server.serve` as the leader of a process group; only the process that is to serve imports it."""
    # Before anything else can start a process: the main process kills the server by its group.
    os.setpgid(0, 0)
    from hxp_enterprise_llm.worker.server import serve

    serve(*arguments, **options)
