"""Imported once by the process that every engine is forked from: vLLM, and what makes it fork.

The fork server (`multiprocessing.forkserver`) imports this module and then does nothing but fork, so a fork always
comes from a process with one thread, no lock held, no GPU opened and all of vLLM's modules in memory.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import TypeVar

import setproctitle

# What is imported stays for ever, and while it comes the collector would walk it again and again: a fifth of the time.
gc.disable()

if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
    # vLLM imports torch's code generator only to make a list in it longer, and goes on if that cannot be imported.
    # Where nothing is compiled this leaves 500 modules out. See docs/decisions/0016-what-a-start-costs.md.
    GENERATOR = "torch._inductor.lowering"
    sys.modules[GENERATOR] = None  # type: ignore[assignment]  # what the import system takes for "there is none"
    try:
        import vllm.env_override
    finally:
        del sys.modules[GENERATOR]

import vllm.utils.system_utils
from vllm.platforms import current_platform

T = TypeVar("T")

# It finds the memory of the title by walking the environment, and must do so before a fork replaces its environment.
setproctitle.setproctitle("VLLM::ForkServer")


def _call(function: Callable[[], T]) -> T:
    return function()


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

from hxp_enterprise_llm.worker import heartbeat  # noqa: F401

if current_platform.is_cpu():
    import vllm.model_executor.models.registry
    import vllm.v1.worker.cpu_worker

    # vLLM looks at a model's class in a process of its own, lest a GPU be opened in this one; that is one more import
    # of all of vLLM at the first start of a model. Without a GPU the server, itself a fork, can look.
    vllm.model_executor.models.registry._run_in_subprocess = _call

# Objects that live for ever need not be walked, and a page that the collector does not touch stays shared. What the
# import leaves of garbage is less than the half second that looking for it takes.
gc.freeze()
gc.enable()
sys.stdout.flush()
