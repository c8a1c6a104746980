"""Imported once by the process that every engine is forked from: vLLM, and what makes it fork.

The fork server (`multiprocessing.forkserver`) imports this module and then does nothing but fork, so a fork always
comes from a process with one thread, no lock held, no GPU opened and all of vLLM's modules in memory.
"""

import gc
import multiprocessing
import sys
from multiprocessing.context import BaseContext

import setproctitle
import vllm.utils.system_utils
from vllm.platforms import current_platform

# It finds the memory of the title by walking the environment, and must do so before a fork replaces its environment.
setproctitle.setproctitle("VLLM::ForkServer")


def _fork_context() -> BaseContext:
    return multiprocessing.get_context("fork")


if current_platform.is_cpu():
    # vLLM's CPU platform forces "spawn", since its API server may hold OpenMP threads that do not survive a fork.
    # Ours holds none: it is itself newly forked, and the engine is the first thing that it starts. It has to be
    # replaced before the modules below import it by name.
    vllm.utils.system_utils.get_mp_context = _fork_context

# What an API server and an engine import on their way to ready; anything missed here is imported after the fork.
import vllm.entrypoints.launchers.api_server.entry
import vllm.entrypoints.launchers.cli_args
import vllm.v1.engine.async_llm
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
import vllm.v1.executor.uniproc_executor

if current_platform.is_cpu():
    import vllm.v1.worker.cpu_worker

# Objects that live for ever need not be walked, and a page that the collector does not touch stays shared.
gc.collect()
gc.freeze()
sys.stdout.flush()
