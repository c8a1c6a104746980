"""Settings to vLLM: its flags, its environment, and the model's directory."""

import errno
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from hxp_enterprise_llm.protocol.worker import MIDDLEWARE
from hxp_enterprise_llm.settings.credential_files import HUB_TOKEN
from hxp_enterprise_llm.settings.errors import ModelMissing, SettingsRefused
from hxp_enterprise_llm.settings.grammar import Fault
from hxp_enterprise_llm.settings.keys import GIBIBYTE, HIGH_GAP_BYTES, PASSED_THROUGH, memory_high
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import MODELS as SERVED_FROM
from hxp_enterprise_llm.settings.values import instance_file

MODELS = Path(SERVED_FROM)
CACHE = Path("/var/cache/citadel-llm")
HIDDEN = (
    "/home", "/root", "/run/user", "/var/lib", "/var/cache", "/var/log", "/var/spool", "/var/mail", "/var/backups",
    "/var/www", "/var/opt", "/var/local",
)  # fmt: skip
"""What the template hides from models, but for MODELS and a model's own cache."""
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  looked for, not written to
"""Of which a service has its own, empty when it starts: to write to, but no place for its model."""
PATHS = re.compile(r"""(?:^|[=:,"'\[\s])(/[A-Za-z0-9._@+/-]+)""")
"""What may be the path of a file in a flag or a variable, also within its JSON."""

OVERHEAD_GB = 1.3
"""Memory of an instance beside weights and KV cache: main process, API server and engine with their libraries (GiB).

Measured as MemoryCurrent less weights and cache, after the first answer: 0.7 for the tiny model, 1.1 for a 135M one.
"""
LEAST_OVERHEAD_GB, LEAST_OVERHEAD_OF_SMALL_GB = 1.0, 0.6
"""Below these a model does not run, one of less than SMALL_MODEL_BYTES (GiB)."""
CACHE_SHARE = 0.8
"""Share of the memory that is then left which the KV cache gets; the rest is for activations and requests."""
SMALLEST_CACHE_GB = 0.0625
SMALL_MODEL_BYTES = 32 << 20
"""Weights below which a core is worth more to the API server than to the model (docs/decisions/0017)."""
DRAWN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""From which port to which the kernel draws one for who asks for none."""
WITH_PORTS = ("port", "nnodes", "distributed", "data-parallel", "-dp", "transfer", "events", "--config")
"""Parts of flags and variables with which vLLM listens on other ports than PORT and drawn ones."""


def find_model(config: ServiceConfigSchema, models: Path = MODELS) -> str:
    """What vLLM gets as its model: a directory of this host, or the hub id where a download is allowed.

    A hub id `organisation/name` lives in the directory of that name below `models`. Raises ModelMissing.
    """
    directory = Path(config.model) if config.model.startswith("/") else models / config.model
    seen = models, CACHE / config.name
    hidden = hidden_in(directory, HIDDEN + PRIVATE, seen)
    if hidden:
        raise ModelMissing(f"MODEL={config.model}: services see nothing in {hidden}; copy the model to {models}")
    try:
        files = sorted(directory.iterdir())
        for file in files:
            if hidden := hidden_in(file, HIDDEN + PRIVATE, seen):
                raise ModelMissing(
                    f"MODEL={config.model}: {file.name} is a link to {os.path.realpath(file)}, and services see "
                    f"nothing in {hidden}; copy the model to {models} with what its links lead to (cp -rL)"
                )
        if stat.S_ISREG((directory / "config.json").stat().st_mode):
            closed = [file for file in files if not os.access(file, os.R_OK)]
            if not closed:
                return str(directory)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(closed[0]))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError as error:
        # Never advise to open a directory that may hold other things than models.
        ours = directory.is_relative_to(models)
        advice = f"give it to all: chmod -R u=rwX,go=rX {directory}" if ours else f"copy the model to {models}"
        raise ModelMissing(
            f"MODEL={config.model}: {error.filename} cannot be read by this service's user; {advice}"
        ) from None
    except OSError as error:
        raise ModelMissing(f"MODEL={config.model}: {directory}: {error.strerror}") from None
    if directory.exists():
        raise ModelMissing(f"MODEL={config.model}: {directory} has no config.json, so it is not a complete model")
    if config.model.startswith("/"):
        raise ModelMissing(f"MODEL={config.model}: there is no such directory; copy the model there or correct MODEL")
    if config.allow_download:
        return config.model
    raise ModelMissing(
        f"MODEL={config.model}: not on this host; fetch it with `citadel-llm pull {config.name}`, "
        f"or copy it to {directory}"
    )


def hidden_in(path: Path, places: Iterable[str], seen: Iterable[Path]) -> str:
    """Which of the places that services do not see a path really lies in, empty if none; `seen` are exceptions."""
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(os.path.realpath(directory)) for directory in seen):
        return ""
    return next((place for place in places if real.is_relative_to(place)), "")


def unseen(config: ServiceConfigSchema, models: Path = MODELS, cache: Path = CACHE) -> list[str]:
    """Files that VLLM_ARGS and variables name where services do not see them, one sentence each.

    For root, who looks from outside: a service could not tell what is hidden from what is not there.
    """
    words = [("VLLM_ARGS", word) for word in config.vllm_args] + list(config.environment.items())
    return [
        f"{key}: services see nothing in {hidden}, so not {path}; copy it beside the model"
        for key, word in words
        for path in PATHS.findall(word)
        # What is no file may be the path of a URL.
        if (hidden := hidden_in(Path(path), HIDDEN, (models, cache / config.name))) and os.path.exists(path)  # noqa: PTH110  raises nothing
    ]


def weights_bytes(model: str) -> int:
    """Size of the weight files that vLLM would load (bytes), 0 for a model that is not on this host.

    A repository may hold the same weights in several formats; vLLM takes safetensors first, and a consolidated file
    repeats the shards beside it.
    """
    for pattern in ("*.safetensors", "*.bin", "*.gguf"):
        # A link may lead nowhere; what vLLM says of that is said when it loads.
        sizes = {file.name: file.stat().st_size for file in Path(model).glob(pattern) if file.is_file()}
        shards = [size for name, size in sizes.items() if not name.startswith("consolidated")]
        if sizes:
            return sum(shards or sizes.values())
    return 0


def cache_gb(config: ServiceConfigSchema, model: str) -> float | None:
    """Size of the KV cache (GiB); None where vLLM sizes it by the GPU's memory.

    vLLM on a CPU would size it by the memory of the whole host, not by the limit of this unit.
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
        raise _refused(config, "KV_CACHE_GB is missing: with ALLOW_DOWNLOAD=yes the model's size is not known before")
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
    return SettingsRefused([Fault(instance_file(config.name), 0, text)])


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
        "--middleware": MIDDLEWARE,
    }
    if config.max_model_len is not None:
        flags["--max-model-len"] = str(config.max_model_len)
    size = cache_gb(config, model)
    if size is not None:
        flags["--kv-cache-memory-bytes"] = str(round(size * GIBIBYTE))
    words = [word for flag in flags.items() for word in flag]
    if not config.gpu_devices:
        # torch.compile on a CPU wants a C++ compiler and writable, executable memory; the unit offers neither.
        if any(word.replace("_", "-").startswith("--no-enforce") for word in config.vllm_args):
            raise _refused(config, "VLLM_ARGS: --no-enforce-eager cannot be used: on a CPU nothing is compiled here")
        words.append("--enforce-eager")
    return [*words, *config.vllm_args]


def threads(config: ServiceConfigSchema, model: str) -> int:
    """OpenMP threads of the engine: as many as the quota lets run, and not more than there are cores.

    More threads than the quota allows are stopped in the middle of a step, and every step waits for the slowest. A
    small model leaves a core to the API server: its threads would wait for each other longer than they compute.
    """
    cores = min(int(config.cpu_cores), len(os.sched_getaffinity(0)))
    return max(1, cores - (0 < weights_bytes(model) < SMALL_MODEL_BYTES))


def ports(config: ServiceConfigSchema) -> list[int] | None:
    """TCP ports that the instance listens on, 0 for a drawn one; None if its settings may take any."""
    asked = [word for word in config.vllm_args if word.startswith("-")] + list(config.environment)
    if any(part in word.lower().replace("_", "-") for word in asked for part in WITH_PORTS):
        return None
    first, last = map(int, DRAWN_PORTS.read_text(encoding="ascii").split())
    return [0, config.port, *range(first, last + 1)]


def environment(
    config: ServiceConfigSchema, model: str, unit: Mapping[str, str], cache: Path = CACHE
) -> dict[str, str]:
    """The whole environment of vLLM's processes, for the model that `find_model` has found.

    Of `unit`, that of the unit itself, it has the locale, the temporary directory, and what vLLM knows: `systemctl
    edit` may set that.
    """
    own_cache = cache / config.name
    values = {
        name: value
        for name, value in unit.items()
        if name in ("LANG", "TMPDIR", "TZ") or name.startswith(PASSED_THROUGH)
    }
    values |= {
        "PATH": "/opt/citadel/env/bin:/usr/bin:/bin",
        "HOME": str(own_cache),
        "XDG_CACHE_HOME": str(own_cache),
        "HF_HOME": str(own_cache / "huggingface"),
        # Kept across restarts: what torch compiles, for vLLM or by itself. Triton's own cache is below HOME.
        "VLLM_CACHE_ROOT": str(own_cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(own_cache / "torchinductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    directory = unit.get("CREDENTIALS_DIRECTORY")
    if directory and config.allow_download and config.hub_token_file:
        # The path, not the token: an environment is read by more than who needs it.
        values["HF_TOKEN_PATH"] = f"{directory}/{HUB_TOKEN}"
    values["HF_HUB_OFFLINE"] = "0" if config.allow_download else "1"
    if not config.gpu_devices:
        values["VLLM_TARGET_DEVICE"] = "cpu"
        # --enforce-eager stops vLLM from compiling the model, not torch from compiling small functions of vLLM: a
        # request for log probabilities would end the engine for want of a C++ compiler.
        values["TORCHDYNAMO_DISABLE"] = "1"
    elif config.gpu_devices != ("all",):
        values["CUDA_VISIBLE_DEVICES"] = ",".join(config.gpu_devices)
    if config.start_method == "fork" and not config.gpu_devices:
        values |= _forked_on_cpu(config, model)
    return values | config.environment


def _forked_on_cpu(config: ServiceConfigSchema, model: str) -> dict[str, str]:
    """What vLLM would set for the processes it spawns, and a forked one can no longer take in.

    libgomp reads its variables when it is loaded, and only a library that is preloaded serves all of torch
    (vLLM issue 27369; `platforms/cpu.py` and `utils/ompmultiprocessing.py` of vLLM 0.32).
    """
    values = {"OMP_NUM_THREADS": str(threads(config, model))}
    if "--tensor-parallel-size" not in " ".join(config.vllm_args):
        # The engine runs its model itself instead of through one more process that imports vLLM again.
        values["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    torch = find_spec("torch")
    for place in torch.submodule_search_locations or [] if torch else []:
        for library in sorted(Path(place).glob("lib/libgomp*.so*")):
            values["LD_PRELOAD"] = str(library)
    return values
