"""The size of the engine's KV cache and the number of threads that it computes with."""

import math
import os
from pathlib import Path

from hxp_enterprise_llm.engine.model_files import weights_bytes
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding
from hxp_enterprise_llm.settings.keys import GIBIBYTE, HIGH_GAP_BYTES, memory_high
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import instance_file

OVERHEAD_GB = 1.3
"""Memory of an instance in addition to weights and KV cache: main process, API server and engine (GiB).

Measured as MemoryCurrent minus weights and cache, after the first answer: 0.7 for the tiny model, 1.1 for a 135M model.
"""
LEAST_OVERHEAD_GB, LEAST_OVERHEAD_OF_SMALL_GB = 1.0, 0.6
"""Smallest sizes with which a model runs; the second is for models below SMALL_MODEL_BYTES (GiB)."""
CACHE_SHARE = 0.8
"""Share of the remaining memory that the KV cache gets; the rest is for activations and requests."""
SMALLEST_CACHE_GB = 0.0625
SMALL_MODEL_BYTES = 32 << 20
"""Size of weights below which a core is of more use to the API server than to the model (docs/decisions/0017)."""


def cache_gb(config: ServiceConfigSchema, model: str) -> float | None:
    """Size of the KV cache (GiB); None if vLLM derives it from the GPU's memory. Raises SettingsRefused.

    On a CPU, vLLM would derive it from the memory of the whole host instead of this unit's limit.
    """
    if config.gpu_devices:
        return config.kv_cache_gb
    if config.kv_cache_gb is not None:
        weights = weights_bytes(model)
        overhead = LEAST_OVERHEAD_OF_SMALL_GB if weights < SMALL_MODEL_BYTES else LEAST_OVERHEAD_GB
        least = weights / GIBIBYTE + config.kv_cache_gb + overhead
        if config.memory_limit_gb < least:
            raise _refused(
                config,
                f"MEMORY_LIMIT_GB={config.memory_limit_gb:g} is too little for this model and KV_CACHE_GB="
                f"{config.kv_cache_gb:g}: write {math.ceil(least * 10) / 10:g} or more",
            )
        return config.kv_cache_gb
    if not Path(model).is_dir():
        raise _refused(config, "KV_CACHE_GB is missing: with ALLOW_DOWNLOAD=yes the model's size is unknown in advance")
    needed = weights_bytes(model) / GIBIBYTE + OVERHEAD_GB
    size = (memory_high(config.memory_limit_gb) / GIBIBYTE - needed) * CACHE_SHARE
    if size < SMALLEST_CACHE_GB:
        enough = needed + SMALLEST_CACHE_GB / CACHE_SHARE + HIGH_GAP_BYTES / GIBIBYTE
        raise _refused(
            config,
            f"MEMORY_LIMIT_GB={config.memory_limit_gb:g} is too little for this model: "
            f"write {math.ceil(enough * 10) / 10:g} or more, or set KV_CACHE_GB",
        )
    return size


def _refused(config: ServiceConfigSchema, text: str) -> SettingsRefused:
    """The error for one finding about an instance's settings as a whole."""
    return SettingsRefused([SettingsFinding(instance_file(config.name), 0, text)])


def threads(config: ServiceConfigSchema, model: str) -> int:
    """OpenMP threads of the engine: as many as the quota lets run at the same time, at most the number of cores.

    With more threads than the quota allows, some are stopped in the middle of a step, and every step waits for the
    slowest. A small model leaves a core to the API server: its threads would wait for each other longer than they
    compute.
    """
    cores = min(int(config.cpu_cores), len(os.sched_getaffinity(0)))
    return max(1, cores - (0 < weights_bytes(model) < SMALL_MODEL_BYTES))
