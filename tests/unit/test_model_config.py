import json
from pathlib import Path
from typing import cast

import pytest

from hxp_enterprise_llm.engine import model_config
from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

LLAMA = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}


def check(directory: Path, content: str | bytes | dict[str, object], **settings: object) -> tuple[list[str], list[str]]:
    text = json.dumps(content) if isinstance(content, dict) else content
    (directory / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    values = {"name": "m", "model": str(directory), "port": 11500, **settings}
    return model_config.check(ServiceConfigSchema.model_validate(values), str(directory))


@pytest.mark.parametrize("content", ["", "{", "[1]", b"\xff\xfe\0", "[" * 100_000, '"text"'])
def test_invalid_config_json_is_refused_with_its_path(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(ModelMissing, match=r"config\.json.*fetch or copy the model again"):
        check(tmp_path, content)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="larger than 16 MB"):
        check(tmp_path, " " * (16 * 1024**2 + 1))


@pytest.mark.parametrize("depth", range(900, 1000, 7))
def test_deep_nesting_is_no_failure(tmp_path: Path, depth: int) -> None:
    """Some depths can be parsed, but not much more; others cannot be parsed."""
    nested = '{"a":' * depth + "1" + "}" * depth
    text = json.dumps({**LLAMA, "rope_scaling": 0})[:-2] + nested + "}"
    try:
        check(tmp_path, text, max_model_len=4096)
    except ModelMissing as refused:
        assert "it is nested too deeply" in str(refused)


def test_huge_numbers_are_no_limit_of_a_model(tmp_path: Path) -> None:
    for number in ("9" * 4000, "1e999", "-1", "true"):
        text = json.dumps({"architectures": ["LlamaForCausalLM"], "n_positions": 0})[:-2] + number + "}"
        assert check(tmp_path, text, max_model_len=4096) == ([], [])
    with pytest.raises(ModelMissing, match="Exceeds the limit"):
        check(tmp_path, '{"n_positions": ' + "9" * 5000 + "}")


def test_names_of_architectures_are_printed_in_part_and_escaped(tmp_path: Path) -> None:
    names = ["\x1b]0;title\x07\x9b31m\n\u202eX"] + ["Y" * 1000] * 1000
    _, (warning,) = check(tmp_path, {**LLAMA, "architectures": names})
    assert "\\x1b]0;title\\x07\\x9b31m\\n\\u202eX, YYY" in warning
    assert len(warning) < 300


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", [1]])
def test_a_model_without_architecture_is_refused(tmp_path: Path, architectures: object) -> None:
    with pytest.raises(ModelMissing, match="names no architecture"):
        check(tmp_path, {**LLAMA, "architectures": architectures})


def test_an_unknown_architecture_is_a_warning(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path_factory.mktemp("table") / "known.json"
    table.write_text('["LlamaForCausalLM"]')
    monkeypatch.setattr(model_config, "TABLE", table)
    assert check(tmp_path, LLAMA) == ([], [])
    faults, (warning,) = check(tmp_path, {**LLAMA, "architectures": ["Strange"]})
    assert not faults and "no code of its own for Strange" in warning


def test_max_model_len_beyond_the_model_names_the_maximum(tmp_path: Path) -> None:
    (fault,), _ = check(tmp_path, LLAMA, max_model_len=4096)
    assert fault.startswith("MAX_MODEL_LEN=4096 is more than this model can: write 2048 (max_position_embeddings")
    assert check(tmp_path, LLAMA, max_model_len=2048) == ([], [])
    nested: dict[str, object] = {"architectures": ["X"], "text_config": {"max_position_embeddings": 10}}
    assert check(tmp_path, nested, max_model_len=11)[0]


def test_max_model_len_flag_is_checked_too(tmp_path: Path) -> None:
    (fault,), _ = check(tmp_path, LLAMA, vllm_args="--max_model_len=4K", max_model_len=64)
    assert fault.startswith("VLLM_ARGS: --max-model-len 4096 is more than this model can")
    assert check(tmp_path, LLAMA, vllm_args="--max-model-len auto", max_model_len=4096) == ([], [])


def test_generating_model_requires_a_length_of_two_tokens(tmp_path: Path) -> None:
    for given in cast("list[dict[str, object]]", [{"max_model_len": 1}, {"vllm_args": "--max-model-len 1"}]):
        (fault,), _ = check(tmp_path, LLAMA, **given)
        assert fault.endswith("has no room for a prompt and an answer: write 2 or more")
    assert check(tmp_path, LLAMA, max_model_len=2) == ([], [])
    assert check(tmp_path, LLAMA, max_model_len=1, vllm_args="--runner pooling") == ([], [])
    assert check(tmp_path, {**LLAMA, "architectures": ["BertModel"]}, max_model_len=1) == ([], [])
    (tmp_path / "modules.json").write_text("[]")
    assert check(tmp_path, LLAMA, max_model_len=1) == ([], [])


def test_scaled_context_length_is_left_to_vllm(tmp_path: Path) -> None:
    scaled = {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    assert check(tmp_path, scaled, max_model_len=8192) == ([], [])
    forced = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    assert check(tmp_path, LLAMA, max_model_len=8192, environment=forced) == ([], [])
    assert check(tmp_path, LLAMA, max_model_len=8192, vllm_args=("--hf-overrides", "{}")) == ([], [])
    assert check(tmp_path, LLAMA, max_model_len=8192, vllm_args=("--hf-over={}",)) == ([], [])
