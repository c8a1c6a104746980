from pathlib import Path

import pytest

from hxp_enterprise_llm.checks.prestart import prepare
from hxp_enterprise_llm.settings.errors import ModelMissing, SettingsRefused

from .conftest import Root

CONFIG = '{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}'


def refused(root: Root, **settings: object) -> list[str]:
    root.instance("m", "".join(f"{key}={value}\n" for key, value in {"PORT": 11500, **settings}.items()))
    with pytest.raises(SettingsRefused) as caught:
        prepare("m", str(root))
    return [finding.text for finding in caught.value.findings]


def test_errors_of_flags_model_and_memory_are_reported_together(root: Root, tmp_path: Path) -> None:
    found = refused(root, MODEL="/srv/none", VLLM_ARGS="--uds=/x")
    assert [text.partition(":")[0] for text in found] == ["VLLM_ARGS", "MODEL=/srv/none"]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(CONFIG)
    (model / "pytorch_model.bin").write_bytes(b"x")
    found = refused(root, MODEL=model, VLLM_ARGS="--uds=/x", MAX_MODEL_LEN=65, MEMORY_LIMIT_GB=0.5)
    assert [text.split()[0] for text in found] == ["VLLM_ARGS:", "MAX_MODEL_LEN=65", "MEMORY_LIMIT_GB=0.5"]


def test_missing_model_without_other_errors_raises_model_missing(root: Root) -> None:
    root.instance("m", "MODEL=/srv/none\nPORT=11500\n")
    with pytest.raises(ModelMissing, match="no such directory"):
        prepare("m", str(root))


def test_all_errors_before_a_start_are_reported_together(root: Root) -> None:
    others = {"KV_CACHE_GB": 9, "VLLM_ARGS": "--uds=/x", "HOST": "10.1.2.3", "HF_TOKEN": "x", "TLS_KEY_FILE": "/k"}
    found = refused(root, MODEL="/srv/none", MAX_TASKS=1, **others)
    assert [text.partition(" ")[0] for text in found] == [
        "MAX_TASKS=1", "KV_CACHE_GB=9", "HOST=10.1.2.3", "HF_TOKEN", "TLS_KEY_FILE", "VLLM_ARGS:", "MODEL=/srv/none:",
    ]  # fmt: skip
    root.host("VLLM_USER=$x\n")
    assert len(refused(root, MODEL="/srv/none", KV_CACHE_GB=9)) == 3


def test_no_error_is_derived_from_a_refused_value(root: Root) -> None:
    found = refused(root, MODEL="/srv/none", KV_CACHE_GB=9, MEMORY_LIMIT_GB="lots")
    assert [text.partition("=")[0] for text in found] == ["MEMORY_LIMIT_GB", "MODEL"]
