from pathlib import Path
from typing import Any

import pytest

from hxp_enterprise_llm.engine import flags
from hxp_enterprise_llm.settings.keys import arguments


def parse(text: str) -> flags.Flags:
    return flags.parse(arguments(text))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("--seed 1 --dtype=half", {"seed": 1, "dtype": "half"}),
        ("--tensor-parallel-size=2", {"tensor_parallel_size": 2}),
        ("--tensor_parallel_size 2", {"tensor_parallel_size": 2}),
        ("-tp 2", {"tensor_parallel_size": 2}),
        ("--tensor-par 2", {"tensor_parallel_size": 2}),
        ("-tp 2 -tp 4", {"tensor_parallel_size": 4}),
        ("--enforce_eager", {"enforce_eager": True}),
        ("--no-enforce-eager", {"enforce_eager": False}),
        ("--no_enforce", {"enforce_eager": False}),
        ("--max-model-len 4k", {"max_model_len": 4000}),
        ("--max-model-len 4K", {"max_model_len": 4096}),
        ("--max-model-len auto", {"max_model_len": -1}),
        ("-O3", {"optimization_level": "3"}),
        ("-O 2", {"optimization_level": "2"}),
        ("-O=1", {"optimization_level": "1"}),
        ('--hf-overrides {"a": 1}', {"hf_overrides": {"a": 1}}),
        ("--hf_overrides.a_b 1e4 --hf-overrides.x.y=z", {"hf_overrides": {"a_b": 10000.0, "x": {"y": "z"}}}),
        ("--hf-overrides.a+ x,y --hf-overrides.a+=z", {"hf_overrides": {"a": ["x", "y", "z"]}}),
        ("--compilation-config.mode 0", {"compilation_config": {"mode": 0}}),
        ("--revision None --max-lora-rank 16", {"revision": None, "max_lora_rank": 16}),
        ("--lora-modules a=/x b=/y", {"lora_modules": ["a=/x", "b=/y"]}),
        ("--middleware a.B --middleware=c.D", {"middleware": ["a.B", "c.D"]}),
        ("--limit-mm-per-prompt {\"image\":2}", {"limit_mm_per_prompt": {"image": 2}}),
        ("--pt-load-map-location cpu", {"pt_load_map_location": "cpu"}),
        ("--pt-load-map-location {\"a\":\"b\"}", {"pt_load_map_location": {"a": "b"}}),
        ("--max-num-queued-reqs None -tp 1", {"max_num_queued_reqs": None, "tensor_parallel_size": 1}),
        ("--gpu-memory-utilization 1", {"gpu_memory_utilization": 1.0}),
        ("-q FP8", {"quantization": "FP8"}),
        ("--tool-call-parser of-no-use", {"tool_call_parser": "of-no-use"}),
        ("--reasoning-parser own --reasoning-parser-plugin /p",
         {"reasoning_parser": "own", "reasoning_parser_plugin": "/p"}),
    ],
)  # fmt: skip
def test_flags_are_read_as_vllm_reads_them(text: str, values: dict[str, Any]) -> None:
    read = parse(text)
    assert read.findings == ()
    assert dict(read.values) == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--seeds 1", "vLLM has no flag --seeds; did you mean --seed?"),
        ("--no-enforce-eagre", "vLLM has no flag --no-enforce-eagre; did you mean --no-enforce-eager?"),
        ("--help", "vLLM has no flag --help"),
        ("--seed many", "argument --seed: invalid int value: 'many'"),
        ("--dtype int4", "argument --dtype: invalid choice: 'int4'"),
        ("--seed", "argument --seed: expected one argument"),
        ("--max-model-len 1.5K", "argument --max-model-len: '1.5K' is not a number"),
        (f"--max-model-len {'9' * 400}k", "argument --max-model-len: '999"),
        (f"--hf-overrides{'.a' * 1500} 1", "a flag such as --flag.key has too many keys"),
        ("--limit-mm-per-prompt {image:2}", "argument --limit-mm-per-prompt: '{image:2}' is not JSON"),
        ("--kv-events-config.no-such 1", "argument --kv-events-config: there is no 'no-such'; there are buffer_steps"),
        ("--compilation-config {mode:1}", "argument --compilation-config/-cc: '{mode:1}' is not JSON"),
        ("--compilation-config 4K", "argument --compilation-config/-cc: '4K' is not JSON"),
        ("--lora-modules half", "argument --lora-modules: 'half' is not JSON"),
        ('--lora-modules {"name":"a"}', "is neither NAME=PATH nor a JSON object with name and path"),
        ("--hf-overrides 'x'", "argument --hf-overrides: 'x' is not JSON"),
        ("--hf-overrides [1]", "argument --hf-overrides: '[1]' is not a JSON object"),
        ("""--hf-overrides '{"a":'""", """argument --hf-overrides: '{"a":' is not JSON"""),
        ("""'--hf-overrides={"a":1'""", """argument --hf-overrides: '{"a":1' is not JSON"""),
        ("--pt-load-map-location {a}", "argument --pt-load-map-location: '{a}' is not JSON"),
        ("--max-model-len 0", "argument --max-model-len: must be at least 1, or auto, not 0"),
        ("--max-num-seqs 0", "argument --max-num-seqs: must be at least 1, not 0"),
        ("--max-num-queued-reqs -1", "argument --max-num-queued-reqs: must be at least 0, not -1"),
        ("-tp 0", "argument --tensor-parallel-size/-tp: must be at least 1, not 0"),
        ("--gpu-memory-utilization 7", "must be at most 1, not 7"),
        ("--gpu-memory-utilization nan", "must be more than 0, not nan"),
        ("--watermark 1", "argument --watermark: must be less than 1, not 1"),
        ("--quantization nonsense", "argument --quantization/-q: there is no 'nonsense'; there are auto_awq"),
        ("--tool-call-parser no --enable-auto-tool-choice", "argument --tool-call-parser: there is no 'no'"),
        ("--reasoning-parser no", "argument --reasoning-parser: there is no 'no'; there are cohere"),
        ("--enable-auto-tool-choice", "--enable-auto-tool-choice requires --tool-call-parser"),
        ("--enable-log-outputs", "--enable-log-outputs requires --enable-log-requests"),
        ("--enable-per-request-metrics --disable-log-stats", "exclude each other"),
        ("--grpc-port 1", "--grpc-port cannot be used"),
        ("--hf-overrides.a", "argument --hf-overrides.a: expected one argument"),
        ("stray", "stray belongs to no flag"),
        ("--port 1", "--port cannot be used: set PORT= instead"),
        ("--served_model_name=x", "--served-model-name cannot be used: set SERVED_MODEL_NAME= instead"),
        ("--por=1", "--port cannot be used"),
        ("--api-k x", "--api-key cannot be used"),
        ("--config /etc/shadow", "--config cannot be used"),
        ("--ssl-keyfile=/k", "--ssl-keyfile cannot be used: set TLS_KEY_FILE= instead"),
        ("--hf_token", "--hf-token cannot be used: set HUB_TOKEN_FILE= instead"),
    ],
)
def test_invalid_or_reserved_flags_are_refused(text: str, said: str) -> None:
    (found,) = parse(text).findings
    assert found.startswith("VLLM_ARGS: ") and said in found


@pytest.mark.parametrize("text", ["--task embed", "--help", "-x 1", "--asc 1"])
def test_suggested_flag_has_as_many_dashes_and_can_be_used(text: str) -> None:
    (found,) = parse(text).findings
    _, _, suggested = found.partition("did you mean ")
    assert suggested == "" or suggested.startswith("--") == text.startswith("--")
    assert "--headless" not in suggested


def test_all_flag_errors_are_reported_together() -> None:
    found = parse("--seed many --dtype int4 --port 1 --seeds 1 -tp 2").findings
    assert [finding.split()[1] for finding in found] == ["--port", "argument", "argument", "vLLM"]
    assert parse("--seed many -tp 2").get("tensor_parallel_size") == 2


def test_a_flag_that_is_switched_off_is_not_refused() -> None:
    assert parse("--no-enable-ssl-refresh").findings == ()


def test_recorded_table_has_every_flag_that_the_code_uses() -> None:
    """A misspelt name would never match."""
    names = {entry.partition('"dest": "')[2].partition('"')[0] for entry in Path(flags.TABLE).read_text().splitlines()}
    assert flags.REFUSED.keys() <= names
