import json
from pathlib import Path

import pytest

from hxp_enterprise_llm.engine.flags import faults

TABLE = [
    {"names": ["--seed"], "values": 1, "kind": "int", "choices": None},
    {"names": ["--dtype"], "values": 1, "kind": "text", "choices": ["auto", "half"]},
    {"names": ["--enforce-eager", "--no-enforce-eager"], "values": 0, "kind": "text", "choices": None},
    {"names": ["--hf-overrides"], "values": 1, "kind": "text", "choices": None},
    {"names": ["--lora-modules"], "values": "+", "kind": "text", "choices": None},
    {"names": ["--tensor-parallel-size", "-tp"], "values": 1, "kind": "int", "choices": None},
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "flags.json"
    file.write_text(json.dumps(TABLE))
    return file


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--seed", "1", "--dtype=half"],
        ["--enforce_eager"],
        ["--no-enforce-eager", "-tp", "2"],
        ["--hf-overrides.rope.theta", "1e4"],
        ["--hf-overrides", '{"a": 1}'],
        ["--lora-modules", "a=/x", "b=/y"],
    ],
)
def test_what_vllm_accepts(words: list[str], table: Path) -> None:
    assert faults(words, table) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "1"], "vLLM has no flag --seeds; did you mean --seed?"),
        (["--seed", "many"], "argument --seed: invalid int value: 'many'"),
        (["--dtype", "int4"], "argument --dtype: invalid choice: 'int4'"),
        (["--seed"], "argument --seed: expected one argument"),
        (["stray"], "stray belongs to no flag"),
        (["--port", "1"], "--port cannot be used: set PORT= instead"),
        (["--served_model_name=x"], "--served-model-name cannot be used: set SERVED_MODEL_NAME= instead"),
        (["--por=1"], "--port cannot be used"),
        (["--api-k", "x"], "--api-key cannot be used"),
        (["--config", "/etc/shadow"], "--config cannot be used"),
        (["--ssl-keyfile=/k"], "--ssl-keyfile cannot be used: set TLS_KEY_FILE= instead"),
        (["--hf_token", "x"], "--hf-token cannot be used: set HUB_TOKEN_FILE= instead"),
    ],
)
def test_what_is_refused(words: list[str], said: str, table: Path) -> None:
    (found,) = faults(words, table)[:1]
    assert said in found


def test_without_a_table_only_our_own_flags_are_refused(tmp_path: Path) -> None:
    assert faults(["--anything"], tmp_path / "none") == []
    assert faults(["--port", "1"], tmp_path / "none")
