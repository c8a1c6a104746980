"""Errors of vLLM that end a service without a restart; messages of vLLM 0.32 (paths below site-packages)."""

import builtins
import ssl
import types
from typing import Annotated

import httpx
import pydantic
import pytest

from hxp_enterprise_llm.worker.failures import description, is_final

FINAL = [
    # vllm/v1/core/kv_cache_utils.py
    ValueError(
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine (this flag also controls CPU memory reservation on the CPU backend, despite its name)."
    ),
    ValueError(
        "To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (0.25 GiB). Based on the available memory, the estimated maximum "
        "model length is 2048. Try increasing `gpu_memory_utilization`"
    ),
    ValueError(
        "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token. Try increasing "
        "`gpu_memory_utilization`."
    ),
    # vllm/model_executor/models/registry.py
    ValueError("Model architectures ['NewForCausalLM'] are not supported for now. Supported architectures: dict_keys"),
    ValueError("Model architecture MotifForCausalLM was supported in vLLM until v0.10.2, and is not supported"),
    ValueError("Model architecture BartModel is not supported in-tree anymore. Please install the plugin at https://x"),
    ValueError("Cannot find model module. 'X' is not a registered model in the Transformers library"),
    # vllm/model_executor/models/utils.py
    ValueError("There is no module or parameter named 'lm_head.weight_scale' in LlamaForCausalLM. The available"),
    # vllm/model_executor/model_loader/default_loader.py
    ValueError("Following weights were not initialized from checkpoint: {'model.norm.weight'}"),
    RuntimeError("Cannot find any model weights with `/srv/model`"),
    # vllm/model_executor/model_loader/weight_utils.py
    ValueError("Cannot find the config file for awq"),
    # vllm/model_executor/model_loader/__init__.py
    ValueError("Load format `nonsense` is not supported"),
    # vllm/v1/worker/utils.py
    ValueError("No common block size for 7 (backends: ['CPU_ATTN'])"),
    # vllm/reasoning/abs_reasoning_parsers.py, vllm/tool_parsers/abstract_tool_parser.py
    KeyError("Reasoning parser 'nonsense' not found. Available parsers: cohere_command3, deepseek_r1"),
    KeyError("Tool parser 'nonsense' not found."),
    # vllm/parser/parser_manager.py
    TypeError("reasoning_parser_name='nonsense' has not been registered"),
    # vllm/entrypoints/openai/models/serving.py
    ValueError("Loading lora x failed: No adapter found for /nonexistent"),
    # vllm/lora/peft_helper.py
    ValueError("LoRA rank 64 is greater than max_lora_rank 16."),
    # vllm/v1/worker/lora_model_runner_mixin.py
    ValueError("BertModel does not support LoRA yet."),
    # transformers/utils/hub.py
    OSError(
        "org/model is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'"
    ),
    OSError(
        "You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/org/model."
    ),
    OSError("/srv/model does not appear to have a file named config.json. Checkout 'https://huggingface.co/'"),
]
TRANSIENT = [
    # vllm/v1/worker/utils.py
    ValueError(
        "Free memory on device cuda:0 (2.1/79.1 GiB) on startup is less than desired GPU memory utilization (0.9, 71.2 "
        "GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    ),
    # vllm/v1/worker/cpu_worker.py
    ValueError("Available memory on node 0 (1.0/23.4 GiB) on startup is less than desired CPU memory utilization"),
    ValueError(
        "Available memory on node 0 (1.0/23.4 GiB) on kv cache allocation is less than requested memory for kv (4.0 "
        "GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
    ),
    # vllm/config/parallel.py
    ValueError("World size (2) is larger than the number of available GPUs (1) in this node. If this is intentional"),
    # vllm/model_executor/models/registry.py
    ValueError("Model architectures ['LlamaForCausalLM'] failed to be inspected. Please check the logs"),
    # vllm/transformers_utils/config.py
    ValueError("Invalid repository ID or local directory specified: 'org/model'.\nPlease verify the following"),
    # transformers/utils/hub.py
    OSError("We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached"),
    OSError("There was a specific connection error when trying to load org/model:\n503 Server Error"),
    # vllm/exceptions.py: an adapter of the hub, which may be reachable later
    LookupError("Loading lora x failed: No adapter found for org/adapter"),
    # vllm/v1/engine/utils.py
    RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}"),
    # a ValueError of some other library, or of a request
    ValueError("I/O operation on closed file"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    httpx.ConnectError("[Errno 101] Network is unreachable"),
    ssl.SSLError(1, "handshake failure"),
    ConnectionRefusedError(111, "Connection refused"),
    MemoryError(),
]


@pytest.mark.parametrize("error", FINAL, ids=str)
def test_errors_in_the_settings_are_final(error: Exception) -> None:
    assert is_final(error)


@pytest.mark.parametrize("error", TRANSIENT, ids=str)
def test_transient_errors_are_not_final(error: Exception) -> None:
    assert not is_final(error)


@pytest.mark.parametrize("error", FINAL[:3], ids=str)
def test_memory_errors_on_a_gpu_are_not_final(error: Exception) -> None:
    assert not is_final(error, gpu=True)


class Model(pydantic.BaseModel):
    """As vLLM's configuration: what a validator raises becomes a ValidationError."""

    length: int
    words: str = ""

    @pydantic.model_validator(mode="after")
    def refuse(self) -> "Model":
        if self.words:
            raise ValueError(self.words)
        return self


# vllm/config/model.py
TOO_LONG = "User-specified max_model_len (4096) is greater than the derived max_model_len (max_position_embeddings=2048"


@pytest.mark.parametrize(("values", "final"), [
    ({"length": "long"}, True),
    ({"length": 1, "words": TOO_LONG}, True),
    *(({"length": 1, "words": str(error)}, False) for error in TRANSIENT[3:6]),
])  # fmt: skip
def test_validation_error_is_final_unless_its_cause_is_transient(values: dict[str, object], final: bool) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Model.model_validate(values)
    assert is_final(caught.value) is final
    assert "pydantic" not in description(caught.value), "neither the input nor the link of pydantic"


def test_validation_error_names_each_field_once() -> None:
    class Limits(pydantic.BaseModel):
        max_num_seqs: Annotated[int, pydantic.Field(ge=1)] | Annotated[float, pydantic.Field(ge=1)]

    with pytest.raises(pydantic.ValidationError) as caught:
        Limits.model_validate({"max_num_seqs": 0})
    assert description(caught.value).count("max_num_seqs") == 1


def exclude() -> None:
    raise ValueError("two flags exclude each other")


@pytest.mark.parametrize(("module", "final"), [
    ("vllm.engine.arg_utils", True), ("vllm.config.vllm", True), ("vllm.envs", True),
    ("vllm.configuration", False), ("vllm.v1.worker", False),
])  # fmt: skip
def test_value_error_is_final_only_in_vllm_configuration_modules(module: str, final: bool) -> None:
    refuse = types.FunctionType(exclude.__code__, {**vars(builtins), "__name__": module})
    with pytest.raises(ValueError, match="exclude") as caught:
        refuse()
    assert is_final(caught.value) is final


@pytest.mark.parametrize(("name", "final"), [
    ("RepositoryNotFoundError", True), ("RevisionNotFoundError", True),
    ("LocalEntryNotFoundError", False), ("OfflineModeIsEnabled", False),
])  # fmt: skip
def test_missing_repository_is_final_and_missing_connection_is_not(name: str, final: bool) -> None:
    """huggingface_hub is part of the package, not of the tests' environment."""
    kind = type(name, (OSError,), {"__module__": "huggingface_hub.errors"})
    assert is_final(type("Derived", (kind,), {})("no")) is final
