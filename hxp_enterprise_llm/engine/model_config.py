"""The parts of a model's config.json on which a start depends, without importing vLLM."""

import json
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.engine import flags, model_files
from hxp_enterprise_llm.settings import regular_files
from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.grammar import shown
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

TABLE = Path(__file__).with_name("vllm_architectures.json")
"""Names of the architectures that vLLM implements; the build writes this file (packaging/vllm_tables.py)."""
LARGEST_BYTES = 16 * 1024**2
"""Far above the size of any config.json, which has a few kilobytes."""
GENERATING = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
"""Endings of the names of architectures that generate text (vllm/config/model.py of 0.32, _SUFFIX_TO_DEFAULTS)."""
LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""Keys in which vLLM 0.32 looks for the longest sequence (tokens); the minimum counts (model_arch_config_convertor)."""

LONGEST = 1 << 53
"""Above the longest sequence of any model (tokens)."""
SHOWN_NAMES = 3
"""Number of architectures that a message names."""


def read(model: str) -> dict[str, Any]:
    """The content of config.json in a model's directory. Raises ModelMissing if vLLM could not read it."""
    file = Path(model, "config.json")
    try:
        values = model_files.parsed(regular_files.read(file, LARGEST_BYTES))
    except OSError as error:
        raise ModelMissing(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise ModelMissing(f"{file} is not readable as JSON ({error}); fetch or copy the model again") from None
    if not isinstance(values, dict):
        raise ModelMissing(f"{file} holds no JSON object; fetch or copy the model again")
    return values


def check(config: ServiceConfigSchema, model: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a model under these settings, one sentence each. Raises ModelMissing.

    With --hf-overrides in VLLM_ARGS, the file is not decisive, so only its form is checked.
    """
    values = read(model)
    given = flags.parse(config.vllm_args)
    if "hf_overrides" in given.values:
        return [], []
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ModelMissing(
            f"MODEL={config.model}: its config.json names no architecture, so vLLM cannot tell what to load; "
            "is it an adapter, or not a language model?"
        )
    warnings = []
    if not set(json.loads(TABLE.read_text(encoding="utf-8"))).intersection(names):
        unknown = shown(", ".join(names[:SHOWN_NAMES]))
        warnings.append(f"MODEL={config.model}: vLLM has no code of its own for {unknown} and may refuse it")
    return [*_too_long(config, given, values), *_too_short(config, given, model, names)], warnings


def longest(values: dict[str, Any]) -> tuple[int, str] | None:
    """The longest sequence that a config.json allows (tokens) and the key with this limit; None without a limit."""
    text = values.get("text_config")
    values = text if isinstance(text, dict) else values
    scaling = [values.get("rope_scaling"), values.get("rope_parameters")]
    if any(map(_scales, scaling)):
        # Whether the factor applies depends on the kind of scaling; vLLM decides.
        return None
    found = [
        (value, key)
        for key in LENGTH_KEYS
        if isinstance(value := values.get(key), int) and not isinstance(value, bool) and 0 < value < LONGEST
    ]
    return min(found) if found else None


def _scales(parameters: Any) -> bool:
    """Whether parameters of the position encoding, or those of a kind of layers among them, have a factor."""
    if not isinstance(parameters, dict):
        return False
    inner = [key for value in parameters.values() if isinstance(value, dict) for key in value]
    return any("factor" in key for key in [*parameters, *inner])


def _length(config: ServiceConfigSchema, given: flags.Flags) -> tuple[str, int | None]:
    """The setting that requests a maximum length, and that length (tokens); None if the model decides."""
    if "max_model_len" in given.values:
        length = given.get("max_model_len")
        return f"VLLM_ARGS: --max-model-len {length}", length if length and length > 0 else None
    return f"MAX_MODEL_LEN={config.max_model_len}", config.max_model_len


def _too_long(config: ServiceConfigSchema, given: flags.Flags, values: dict[str, Any]) -> list[str]:
    limit = longest(values)
    forced = config.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("", "0")
    setting, length = _length(config, given)
    if length is None or limit is None or length <= limit[0] or forced:
        return []
    return [
        f"{setting} is more than this model can: write {limit[0]} ({limit[1]} in its config.json) or less, or leave it "
        "out"
    ]


def _too_short(config: ServiceConfigSchema, given: flags.Flags, model: str, names: list[str]) -> list[str]:
    setting, length = _length(config, given)
    if length != 1 or not _generates(given, model, names):
        return []
    return [f"{setting} has no room for a prompt and an answer: write 2 or more"]


def _generates(given: flags.Flags, model: str, names: list[str]) -> bool:
    """Whether a model generates text instead of pooling, determined as in vLLM (vllm/config/model.py of 0.32)."""
    runner = given.get("runner", "auto")
    if runner != "auto":
        return bool(runner == "generate")
    pools = given.get("convert", "auto") not in ("auto", "none") or Path(model, "modules.json").exists()
    return not pools and all(name.endswith(GENERATING) for name in names)
