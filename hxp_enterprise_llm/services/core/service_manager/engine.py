"""Settings to vLLM: its flags, its environment, and the model's directory."""

import os
import stat
from importlib.util import find_spec
from pathlib import Path

from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.utils.errors import ModelMissing, SettingsRefused
from hxp_enterprise_llm.utils.settings_file import Fault
from hxp_enterprise_llm.utils.settings_keys import GIBIBYTE

MODELS = Path("/var/lib/citadel-llm/models")
CACHE = Path("/var/cache/citadel-llm")

OVERHEAD_GB = 1.9
"""Memory of an instance beside weights and KV cache: main process, API server and engine with their libraries (GiB).

Measured on the test instance; `bench` shows it again.
"""
CACHE_SHARE = 0.8
"""Share of the memory that is then left which the KV cache gets; the rest is for activations and requests."""
SMALLEST_CACHE_GB = 0.0625


def find_model(config: ServiceConfigSchema, models: Path = MODELS) -> str:
    """What vLLM gets as its model: a directory of this host, or the hub id where a download is allowed.

    A hub id `organisation/name` lives in the directory of that name below `models`. Raises ModelMissing.
    """
    directory = Path(config.model) if config.model.startswith("/") else models / config.model
    try:
        mode = (directory / "config.json").stat().st_mode
    except PermissionError:
        raise ModelMissing(f"MODEL={config.model}: {directory} cannot be read by this service's user") from None
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    if stat.S_ISREG(mode):
        for file in sorted(directory.iterdir()):
            if not os.access(file, os.R_OK):
                raise ModelMissing(
                    f"MODEL={config.model}: {file} cannot be read by this service's user; "
                    f"give it to all: chmod -R u=rwX,go=rX {directory}"
                )
        return str(directory)
    if directory.exists():
        raise ModelMissing(f"MODEL={config.model}: {directory} has no config.json, so it is not a complete model")
    if config.model.startswith("/"):
        raise ModelMissing(f"MODEL={config.model}: there is no such directory; copy the model there or correct MODEL")
    if config.allow_download:
        return config.model
    raise ModelMissing(
        f"MODEL={config.model}: not on this host; copy the model to {directory}, or let the start fetch it with "
        "ALLOW_DOWNLOAD=yes"
    )


def weights_bytes(model: str) -> int:
    """Size of the model's weight files (bytes), 0 for a model that is not on this host."""
    return sum(
        file.stat().st_size for suffix in ("safetensors", "bin", "gguf") for file in Path(model).glob(f"*.{suffix}")
    )


def cache_gb(config: ServiceConfigSchema, model: str) -> float | None:
    """Size of the KV cache (GiB); None where vLLM sizes it by the GPU's memory.

    vLLM on a CPU would size it by the memory of the whole host, not by the limit of this unit.
    """
    if config.kv_cache_gb is not None:
        return config.kv_cache_gb
    if config.gpu_devices:
        return None
    left = config.memory_limit_gb - weights_bytes(model) / GIBIBYTE - OVERHEAD_GB
    size = left * CACHE_SHARE
    if size < SMALLEST_CACHE_GB:
        needed = config.memory_limit_gb - left + SMALLEST_CACHE_GB / CACHE_SHARE
        raise SettingsRefused(
            [
                Fault(
                    f"citadel-llm-{config.name}",
                    0,
                    f"MEMORY_LIMIT_GB={config.memory_limit_gb:g} is too little for this model: "
                    f"write {needed:.1f} or more, or set KV_CACHE_GB",
                )
            ]
        )
    return size


def arguments(config: ServiceConfigSchema, model: str) -> list[str]:
    """The flags of `vllm serve` for these settings. VLLM_ARGS come last, so that they win."""
    flags = {
        "--model": model,
        "--served-model-name": config.api_name,
        "--host": config.host,
        "--port": str(config.port),
        # Without it vLLM aborts the requests in flight when it is told to stop.
        "--shutdown-timeout": str(round(config.drain_timeout_sec)),
        "--disable-access-log-for-endpoints": "/health,/metrics",
    }
    if config.max_model_len is not None:
        flags["--max-model-len"] = str(config.max_model_len)
    size = cache_gb(config, model)
    if size is not None:
        flags["--kv-cache-memory-bytes"] = str(round(size * GIBIBYTE))
    words = [word for flag in flags.items() for word in flag]
    if not config.gpu_devices:
        # torch.compile on a CPU wants a C++ compiler and writable, executable memory; the unit offers neither.
        words.append("--enforce-eager")
    return [*words, *config.vllm_args]


def threads(config: ServiceConfigSchema) -> int:
    """OpenMP threads of the engine: as many as the quota lets run, and not more than there are cores.

    More threads than the quota allows are stopped in the middle of a step, and every step waits for the slowest.
    """
    return max(1, min(int(config.cpu_cores), len(os.sched_getaffinity(0))))


def environment(config: ServiceConfigSchema, cache: Path = CACHE) -> dict[str, str]:
    """The whole environment of vLLM's processes: nothing is inherited but the locale and the temporary directory."""
    own_cache = cache / config.name
    values = {name: os.environ[name] for name in ("LANG", "TMPDIR", "TZ") if name in os.environ}
    values |= {
        "PATH": "/opt/citadel/env/bin:/usr/bin:/bin",
        "HOME": str(own_cache),
        "XDG_CACHE_HOME": str(own_cache),
        "HF_HOME": str(own_cache / "huggingface"),
        # Kept across restarts: torch.compile's results are here.
        "VLLM_CACHE_ROOT": str(own_cache / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if not config.allow_download:
        values["HF_HUB_OFFLINE"] = "1"
    if not config.gpu_devices:
        values["VLLM_TARGET_DEVICE"] = "cpu"
    elif config.gpu_devices != ("all",):
        values["CUDA_VISIBLE_DEVICES"] = ",".join(config.gpu_devices)
    if config.start_method == "fork" and not config.gpu_devices:
        values |= _forked_on_cpu(config)
    return values | config.environment


def _forked_on_cpu(config: ServiceConfigSchema) -> dict[str, str]:
    """What vLLM would set for the processes it spawns, and a forked one can no longer take in.

    libgomp reads its variables when it is loaded, and only a library that is preloaded serves all of torch
    (vLLM issue 27369; `platforms/cpu.py` and `utils/ompmultiprocessing.py` of vLLM 0.32).
    """
    values = {"OMP_NUM_THREADS": str(threads(config))}
    if "--tensor-parallel-size" not in " ".join(config.vllm_args):
        # The engine runs its model itself instead of through one more process that imports vLLM again.
        values["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    torch = find_spec("torch")
    for place in torch.submodule_search_locations or [] if torch else []:
        for library in sorted(Path(place).glob("lib/libgomp*.so*")):
            values["LD_PRELOAD"] = str(library)
    return values
