"""Imported once by the fork server: vLLM, and the changes that make the API server fork its engine.

The fork server (`multiprocessing.forkserver`) imports this module and then only forks, so a fork always comes from a
process with one thread, no lock held, no GPU opened and all of vLLM's modules in memory.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import TypeVar

import setproctitle

from hxp_enterprise_llm.worker import fork_requests

# Before anything that may fail: the fork server ignores an import that fails.
fork_requests.accept_from_parent_only()

# Imported modules are never freed, and garbage collection would take a fifth of the time of the import.
gc.disable()

if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
    # vLLM imports torch's code generator only to extend a list in it, and continues if the import fails. Without
    # compilation this saves 500 modules. See docs/decisions/0016-what-a-start-costs.md.
    GENERATOR = "torch._inductor.lowering"
    sys.modules[GENERATOR] = None  # type: ignore[assignment]  # makes the import system raise ImportError
    try:
        import vllm.env_override
    finally:
        del sys.modules[GENERATOR]

import vllm.utils.system_utils
from vllm.platforms import current_platform

T = TypeVar("T")

# setproctitle locates its memory through the environment, so it must be called before a fork replaces that.
setproctitle.setproctitle("VLLM::ForkServer")


def _call(function: Callable[[], T]) -> T:
    return function()


def _fork_context() -> BaseContext:
    return multiprocessing.get_context("fork")


if current_platform.is_cpu():
    # vLLM's CPU platform forces "spawn", since its API server may have OpenMP threads, which do not survive a fork.
    # Here the API server is a new fork itself and starts the engine first. Replaced before the modules below import
    # the function by name.
    vllm.utils.system_utils.get_mp_context = _fork_context

# Everything that an API server and an engine import before they are ready; the rest is imported after the fork.
import vllm.entrypoints.launchers.api_server.entry
import vllm.entrypoints.launchers.cli_args
import vllm.v1.engine.async_llm
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.executor.uniproc_executor

# Our own modules too: an upgrade of the package may move or change them before the next fork.
import hxp_enterprise_llm.protocol.worker
import hxp_enterprise_llm.worker.engine
import hxp_enterprise_llm.worker.fetch
import hxp_enterprise_llm.worker.heartbeat
import hxp_enterprise_llm.worker.long_texts
import hxp_enterprise_llm.worker.server  # noqa: F401

if current_platform.is_cpu():
    import vllm.model_executor.models.registry
    import vllm.v1.worker.cpu_worker

    # vLLM inspects a model's class in another process, so that this one opens no GPU; at the first start of a model
    # that process imports all of vLLM again. Without a GPU, the server, which is a fork, can inspect the class itself.
    vllm.model_executor.models.registry._run_in_subprocess = _call

# The collector skips frozen objects, so their pages stay shared. Collecting the garbage of the imports first would
# take half a second and free little.
gc.freeze()
gc.enable()
sys.stdout.flush()
