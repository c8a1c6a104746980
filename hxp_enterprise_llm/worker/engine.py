"""What the engine's process does before any code of vLLM: it gives up the secrets that the API server has or will have.

The engine is a process of the same user as the API server, and usually a fork of it. docs/decisions/0031 ("Secrets
within a model") has the list of what it could do otherwise.
"""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.system import isolation

log = logging.getLogger(__name__)

CREDENTIALS = "/run/credentials"
"""Where systemd puts the credentials of units."""
WITH_LOCKS = "vllm.model_executor.model_loader.weight_utils"
OWN = "engine"
"""Name of the engine's own directories, in the cache and in the directory of temporary files."""
IN_CACHE = {
    "HOME": ".",
    "XDG_CACHE_HOME": ".",
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
}
"""Variables that name directories to write to, and their place in the engine's own directory."""


class Engine:
    """vLLM's function `run`, which runs the engine, for a process that must not have the secrets of the API server.

    `withheld` are sockets over which secrets come, or which only the API server may accept from. A spawned process
    inherits none of them.
    """

    def __init__(self, run: Callable[..., None], withheld: tuple[socket.socket, ...]) -> None:
        self._run, self._withheld = run, withheld

    def __call__(self, *arguments: Any, **options: Any) -> None:
        """Run the engine in this process, a fork of the API server."""
        for end in self._withheld:
            end.close()
        give_up_secrets()
        self._run(*arguments, **options)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        """Make a spawned process give up the secrets as soon as it reads this: before it imports vLLM for the rest.

        A Landlock domain holds for one thread and those that it starts, and libraries start threads when imported.
        """
        return _spawned, ()


def install(*withheld: socket.socket) -> None:
    """Let every engine that this process starts begin here; `withheld` are the sockets that it must not have."""
    from vllm.v1.engine.core import EngineCoreProc

    # vLLM names this attribute as the target of the engine's process (vllm/v1/engine/utils.py).
    EngineCoreProc.run_engine_core = Engine(EngineCoreProc.run_engine_core, withheld)


def _spawned() -> Callable[..., None]:
    give_up_secrets()
    from vllm.v1.engine.core import EngineCoreProc

    run: Callable[..., None] = EngineCoreProc.run_engine_core
    return run


def give_up_secrets() -> None:
    """Enter a Landlock domain that cannot read credentials, trace other processes, or write what these trust.

    Raises OSError if the kernel could refuse all that, but does not: an engine must not escape by filling a disk.
    """
    temporary = _own(tempfile.gettempdir())
    os.environ["TMPDIR"] = str(temporary)
    # Python has remembered the directory, and so has a module of vLLM, imported in the fork server, for locks.
    tempfile.tempdir = None
    if WITH_LOCKS in sys.modules:
        vars(sys.modules[WITH_LOCKS])["temp_dir"] = str(temporary)
    writable = [Path("/dev"), Path("/proc"), temporary]
    home = Path(os.environ["HOME"])
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        own = _own(home)
        os.environ.update({name: str(own / place) for name, place in IN_CACHE.items()})
        writable.append(own)
        if os.environ.get("HF_HUB_OFFLINE") != "1":
            # Without a token of the hub, the engine downloads the weights itself.
            hub = Path(os.environ["HF_HOME"])
            hub.mkdir(parents=True, exist_ok=True)
            writable.append(hub)
    else:
        # Compilers for GPUs have their caches in various places below HOME.
        writable.append(home)
    isolation.confine(CREDENTIALS, writable)


def _own(directory: Path | str) -> Path:
    """The engine's own directory below a directory that only the processes outside its domain write to."""
    own = Path(directory, OWN)
    own.mkdir(mode=0o700, exist_ok=True)
    return own
