"""What a model's config.json says, as far as a start depends on it, without importing vLLM."""

import json
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

TABLE = Path(__file__).with_name("vllm_architectures.json")
"""Names of the architectures that vLLM has code for; the build writes it (packaging/vllm_tables.py)."""
LARGEST_BYTES = 16 * 1024**2
"""A config.json is some kilobytes; a larger file is none."""
LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""Where vLLM 0.32 looks for the longest sequence (tokens); the smallest counts (model_arch_config_convertor.py)."""


def read(model: str) -> dict[str, Any]:
    """The config.json of a model's directory. Raises ModelMissing if it is not one that vLLM can read."""
    file = Path(model, "config.json")
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST_BYTES + 1)
        if len(text) > LARGEST_BYTES:
            raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MB")
        values = json.loads(text)
    except OSError as error:
        raise ModelMissing(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelMissing(f"{file} is not readable as JSON ({error}); fetch or copy the model again") from None
    if not isinstance(values, dict):
        raise ModelMissing(f"{file} holds no JSON object; fetch or copy the model again")
    return values


def check(config: ServiceConfigSchema, model: str) -> tuple[list[str], list[str]]:
    """Faults and warnings of a model on this host under these settings, one sentence each. Raises ModelMissing.

    With --hf-overrides in VLLM_ARGS the file does not decide, and only its form is looked at.
    """
    values = read(model)
    if any(word.replace("_", "-").startswith("--hf-overrides") for word in config.vllm_args):
        return [], []
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ModelMissing(
            f"MODEL={config.model}: its config.json names no architecture, so vLLM cannot tell what to load; "
            "is it an adapter, or not a language model?"
        )
    known = set(json.loads(TABLE.read_text(encoding="utf-8"))) if TABLE.exists() else set(names)
    warnings = []
    if not known.intersection(names):
        warnings.append(f"MODEL={config.model}: vLLM has no code of its own for {', '.join(names)} and may refuse it")
    return _too_long(config, values), warnings


def longest(values: dict[str, Any]) -> tuple[int, str] | None:
    """The longest sequence that a config.json allows (tokens) and the key that says so; None if it leaves that open."""
    text = values.get("text_config")
    values = text if isinstance(text, dict) else values
    scaling = [values.get("rope_scaling"), values.get("rope_parameters")]
    if any("factor" in json.dumps(entry) for entry in scaling if entry):
        # Whether the factor counts depends on its kind; vLLM decides.
        return None
    found = [
        (value, key)
        for key in LENGTH_KEYS
        if isinstance(value := values.get(key), int) and not isinstance(value, bool) and value > 0
    ]
    return min(found) if found else None


def _too_long(config: ServiceConfigSchema, values: dict[str, Any]) -> list[str]:
    limit = longest(values)
    forced = config.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("", "0")
    if config.max_model_len is None or limit is None or config.max_model_len <= limit[0] or forced:
        return []
    return [
        f"MAX_MODEL_LEN={config.max_model_len} is more than this model can: write {limit[0]} ({limit[1]} in its "
        "config.json) or less, or leave it out"
    ]
