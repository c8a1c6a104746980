"""The names by which other processes refer to the worker: they must import neither vLLM nor a module that does."""

import os
from typing import Any, NamedTuple, Self

from hxp_enterprise_llm.settings.keys import MEBIBYTE
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

PRELOAD = "hxp_enterprise_llm.worker.preload"
"""Module that the fork server imports, so that each server starts with vLLM in memory."""
BACKLOG = 2048
"""How many connections may wait while no server accepts them; the kernel limits it to net.core.somaxconn."""

HUB_TOKEN_PATH = "CITADEL_HUB_TOKEN_PATH"  # noqa: S105  a name, no token
"""Variable with the path of the hub's token. Not HF_TOKEN_PATH, of which huggingface_hub would read the token into the
memory of every process."""
LARGEST_COMMAND_BYTES = 1 << 16
"""Length of the longest message from the main process to a server."""


class Limits(NamedTuple):
    """Limits on the clients of a server: size of a request's body, number of open connections."""

    request_bytes: int
    connections: int

    @classmethod
    def of(cls, config: ServiceConfigSchema) -> Self:
        """The limits in the settings of an instance."""
        return cls(round(config.max_request_mb * MEBIBYTE), config.max_connections)


def serve(*arguments: Any, **options: Any) -> None:
    """Run `worker.server.serve` as the leader of a process group; only the server process imports it."""
    # Before anything else can start a process: the main process kills the server by its group.
    os.setpgid(0, 0)
    from hxp_enterprise_llm.worker.server import serve

    serve(*arguments, **options)
