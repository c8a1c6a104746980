from pathlib import Path

import pytest

from hxp_enterprise_llm.services.core.service_manager.prestart import prepare
from hxp_enterprise_llm.utils.errors import ModelMissing, SettingsRefused

from .conftest import Root

CONFIG = '{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}'


def refused(root: Root, **settings: object) -> list[str]:
    root.instance("m", "".join(f"{key}={value}\n" for key, value in {"PORT": 11500, **settings}.items()))
    with pytest.raises(SettingsRefused) as caught:
        prepare("m", str(root))
    return [fault.text for fault in caught.value.faults]


def test_flags_model_and_memory_are_told_of_at_once(root: Root, tmp_path: Path) -> None:
    found = refused(root, MODEL="/srv/none", VLLM_ARGS="--uds=/x")
    assert [text.partition(":")[0] for text in found] == ["VLLM_ARGS", "MODEL=/srv/none"]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(CONFIG)
    (model / "pytorch_model.bin").write_bytes(b"x")
    found = refused(root, MODEL=model, VLLM_ARGS="--uds=/x", MAX_MODEL_LEN=65, MEMORY_LIMIT_GB=0.5)
    assert [text.split()[0] for text in found] == ["VLLM_ARGS:", "MAX_MODEL_LEN=65", "MEMORY_LIMIT_GB=0.5"]


def test_a_model_that_alone_is_missing_is_called_missing(root: Root) -> None:
    root.instance("m", "MODEL=/srv/none\nPORT=11500\n")
    with pytest.raises(ModelMissing, match="no such directory"):
        prepare("m", str(root))
