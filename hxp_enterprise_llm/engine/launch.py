"""Settings to vLLM: the flags, the environment and the ports of its server."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from hxp_enterprise_llm.engine import flags
from hxp_enterprise_llm.engine.model_directory import CACHE
from hxp_enterprise_llm.engine.sizes import cache_gb, threads
from hxp_enterprise_llm.protocol.worker import HUB_TOKEN_PATH
from hxp_enterprise_llm.settings.credential_files import HUB_TOKEN
from hxp_enterprise_llm.settings.keys import GIBIBYTE, PASSED_THROUGH, is_loopback
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The first and the last port that the kernel assigns as an ephemeral port."""
WITH_PORTS = ("port", "nnodes", "distributed", "data_parallel", "_dp_", "transfer", "events")
"""Parts of the names of flags and variables that make vLLM listen on ports other than PORT and ephemeral ports."""


def arguments(config: ServiceConfigSchema, model: str) -> list[str]:
    """The flags of `vllm serve` for these settings. VLLM_ARGS come last and take precedence. Raises SettingsRefused."""
    given = {
        "--model": model,
        "--served-model-name": config.api_name,
        "--host": config.host,
        "--port": str(config.port),
        # Without this, vLLM aborts requests in flight when it is stopped.
        "--shutdown-timeout": str(round(config.drain_timeout_sec)),
        "--disable-access-log-for-endpoints": "/health,/metrics",
    }
    if config.max_model_len is not None:
        given["--max-model-len"] = str(config.max_model_len)
    size = cache_gb(config, model)
    if size is not None:
        given["--kv-cache-memory-bytes"] = str(round(size * GIBIBYTE))
    words = [word for flag in given.items() for word in flag]
    if not config.gpu_devices:
        # Nothing is compiled on a CPU; see checks/arguments.py.
        words.append("--enforce-eager")
    return [*words, *config.vllm_args]


def ports(config: ServiceConfigSchema) -> list[int] | None:
    """TCP ports that the instance listens on, 0 for an ephemeral port; None if its settings may open any port."""
    given = [*flags.parse(config.vllm_args).values, *map(str.lower, config.environment)]
    if any(part in name for name in given for part in WITH_PORTS):
        return None
    first, last = map(int, EPHEMERAL_PORTS.read_text(encoding="ascii").split())
    return [0, config.port, *range(first, last + 1)]


def environment(
    config: ServiceConfigSchema, model: str, unit: Mapping[str, str], cache: Path = CACHE
) -> dict[str, str]:
    """The whole environment of vLLM's processes, for the model that `find_model` has found.

    From `unit`, the unit's own environment, it takes the locale, the temporary directory, the name of the user (with
    VLLM_USER=dynamic, it may be in no database), and vLLM's variables, which `systemctl edit` may set.
    """
    own_cache = cache / config.name
    values = {
        name: value
        for name, value in unit.items()
        if name in ("LANG", "LOGNAME", "TMPDIR", "TZ") or name.startswith(PASSED_THROUGH)
    }
    values |= {
        "PATH": "/opt/citadel/env/bin:/usr/bin:/bin",
        "HOME": str(own_cache),
        "XDG_CACHE_HOME": str(own_cache),
        "HF_HOME": str(own_cache / "huggingface"),
        # The output of torch's compiler is kept across restarts. Triton's own cache is below HOME.
        "VLLM_CACHE_ROOT": str(own_cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(own_cache / "torchinductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Otherwise Python would import modules from the cache.
        "PYTHONNOUSERSITE": "1",
    }
    directory = unit.get("CREDENTIALS_DIRECTORY")
    if directory and config.allow_download and config.hub_token_file:
        # Only the process that fetches the model gets the token, and the others work offline.
        values[HUB_TOKEN_PATH] = f"{directory}/{HUB_TOKEN}"
    values["HF_HUB_OFFLINE"] = "0" if config.allow_download and HUB_TOKEN_PATH not in values else "1"
    if is_loopback(config.host) and not config.allow_download:
        # gloo listens on the address of the host's name, which Debian's installer makes 127.0.1.1; the unit's packet
        # filter lets only 127.0.0.1 through.
        values["GLOO_SOCKET_IFNAME"] = "lo"
    if not config.gpu_devices:
        values["VLLM_TARGET_DEVICE"] = "cpu"
        # --enforce-eager stops vLLM from compiling the model, not torch from compiling small functions of vLLM:
        # without a C++ compiler, a request for log probabilities would end the engine.
        values["TORCHDYNAMO_DISABLE"] = "1"
    elif config.gpu_devices != ("all",):
        values["CUDA_VISIBLE_DEVICES"] = ",".join(config.gpu_devices)
    if config.start_method == "fork" and not config.gpu_devices:
        values |= _forked_on_cpu(config, model)
    return values | config.environment


def _forked_on_cpu(config: ServiceConfigSchema, model: str) -> dict[str, str]:
    """Variables that vLLM sets for processes that it spawns; in a forked process they would be set too late.

    libgomp reads its variables when it is loaded, and only a preloaded library serves all of torch (vLLM issue 27369;
    `platforms/cpu.py` and `utils/ompmultiprocessing.py` of vLLM 0.32).
    """
    values = {"OMP_NUM_THREADS": str(threads(config, model))}
    given = flags.parse(config.vllm_args)
    if given.get("tensor_parallel_size", 1) == given.get("pipeline_parallel_size", 1) == 1:
        # The engine runs its model itself, instead of in a further process that imports vLLM again.
        values["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    torch = find_spec("torch")
    for place in torch.submodule_search_locations or [] if torch else []:
        for library in sorted(Path(place).glob("lib/libgomp*.so*")):
            values["LD_PRELOAD"] = str(library)
    return values
