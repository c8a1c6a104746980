"""Which of vLLM's errors come from the settings: another start with the same settings would fail in the same way.

Any other error may pass by itself, so systemd restarts the service. docs/decisions/0021 gives the reasons.
The patterns are those of vLLM 0.32 and of Transformers as the package carries them.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import ValidationError

TEXT_BYTES = 1000
"""Length of the description of an error: the main process must be able to read the message at once."""
CONFIG_MODULES = ("vllm.config", "vllm.engine.arg_utils", "vllm.envs")
"""Modules (and those below them) that only read, combine and validate settings: their ValueErrors are final."""
FINAL_TYPES = (
    "huggingface_hub.errors.DisabledRepoError",
    "huggingface_hub.errors.HFValidationError",
    "huggingface_hub.errors.RepositoryNotFoundError",  # also GatedRepoError
    "huggingface_hub.errors.RevisionNotFoundError",
)
"""Answers of the hub that stay the same when the request is repeated."""


class Pattern(NamedTuple):
    """An error recognised by its type and the beginning of one of its sentences."""

    kind: type[Exception]
    text: str

    def matches(self, error: BaseException, text: str) -> bool:
        """Whether `error`, with the message `text`, is such an error."""
        return isinstance(error, self.kind) and re.search(self.text, text) is not None


FINAL = (
    # vllm/v1/core/kv_cache_utils.py: the cache is too small for one request of MAX_MODEL_LEN tokens
    Pattern(ValueError, r"No available memory for the cache blocks"),
    Pattern(ValueError, r"To serve at least one request with the model's max seq len"),
    Pattern(ValueError, r"Cannot auto-fit max_model_len: not enough"),
    # vllm/model_executor/models/registry.py
    Pattern(ValueError, r"Model architectures? .* (are not supported for now|is not supported)"),
    Pattern(ValueError, r"Model architecture .* was supported in vLLM until"),
    Pattern(ValueError, r"Cannot find model module"),
    Pattern(ValueError, r"The Transformers implementation of .* is not compatible with vLLM"),
    # vllm/model_executor/models/utils.py, vllm/model_executor/model_loader/default_loader.py: weights of another model
    Pattern(ValueError, r"There is no module or parameter named"),
    Pattern(ValueError, r"Following weights were not initialized from checkpoint"),
    Pattern(RuntimeError, r"Cannot find any model weights with"),
    Pattern(ValueError, r"Unknown load_format"),
    Pattern(ValueError, r"model_loader_extra_config must be"),
    Pattern(ValueError, r"Unexpected extra config keys for load format"),
    # vllm/model_executor/model_loader/weight_utils.py
    Pattern(ValueError, r"Cannot find the config file for"),
    Pattern(ValueError, r"Found multiple config files for"),
    Pattern(ValueError, r"Unsupported quantization config found for"),
    # vllm/model_executor/model_loader/__init__.py
    Pattern(ValueError, r"Load format .* is not supported"),
    # vllm/v1/worker/utils.py: no kernel of the model computes with --block-size
    Pattern(ValueError, r"No common block size for"),
    # vllm/reasoning/abs_reasoning_parsers.py, vllm/tool_parsers/abstract_tool_parser.py, vllm/parser/parser_manager.py
    Pattern(KeyError, r"(Reasoning|Tool) parser '.*' not found"),
    Pattern(TypeError, r"has not been registered"),
    # vllm/v1/worker/lora_model_runner_mixin.py
    Pattern(ValueError, r"does not support LoRA yet"),
    # vllm/lora/peft_helper.py
    Pattern(ValueError, r"LoRA rank .* is greater than max_lora_rank"),
    # vllm/exceptions.py, LoRAAdapterNotFoundError: raised in vllm/lora/worker_manager.py, and turned into ValueError in
    # vllm/entrypoints/openai/models/serving.py. An adapter of the hub may be reachable later.
    Pattern(Exception, r"Loading lora .* failed: No adapter found for /"),
    # vllm/platforms/interface.py
    Pattern(ValueError, r"quantization is currently not supported in"),
    # transformers/utils/hub.py, which turns the hub's answers into OSError
    Pattern(OSError, r"is not a local folder and is not a valid model identifier"),
    Pattern(OSError, r"is not a valid git identifier"),
    Pattern(OSError, r"You are trying to access a gated repo"),
    Pattern(OSError, r"does not appear to have (a file|files) named"),
)
TRANSIENT = (
    # vllm/v1/worker/utils.py: a process that has ended may still hold GPU memory
    Pattern(ValueError, r"Free memory on device"),
    Pattern(ValueError, r"Externally held weights on device"),
    # vllm/v1/worker/cpu_worker.py: depends on the free memory of the host
    Pattern(ValueError, r"Available memory on node"),
    # vllm/config/parallel.py: a GPU that the driver has not found yet, or has lost
    Pattern(ValueError, r"World size .* is larger than the number of available GPUs"),
    # vllm/model_executor/models/registry.py: vLLM inspects the model's class in another process, which may be killed
    Pattern(ValueError, r"failed to be inspected"),
    # vllm/transformers_utils/config.py: covers all errors, including a hub that cannot be reached
    Pattern(ValueError, r"Invalid repository ID or local directory specified"),
    Pattern(ValueError, r"Could not detect config format for no config file found"),
    # transformers/utils/hub.py
    Pattern(OSError, r"We couldn't connect to"),
    Pattern(OSError, r"There was a specific connection error"),
)
"""Errors that may pass, though their type or module is that of an error in the settings."""
MEASURED = FINAL[:3]
"""On a GPU these depend on free memory, of which another process may hold some for a moment."""


def is_final(error: BaseException, *, gpu: bool = False) -> bool:
    """Whether the settings have to change before a start can succeed. `gpu`: the model computes on a GPU."""
    text = message(error)
    if any(pattern.matches(error, text) for pattern in TRANSIENT + (MEASURED if gpu else ())):
        return False
    if any(pattern.matches(error, text) for pattern in FINAL):
        return True
    if isinstance(error, ValidationError) or not _names(error).isdisjoint(FINAL_TYPES):
        return True
    raised_in = _module(error)
    return isinstance(error, ValueError) and any(
        raised_in == module or raised_in.startswith(f"{module}.") for module in CONFIG_MODULES
    )


def message(error: BaseException) -> str:
    """The message of an error on one line; that of a pydantic error without its input and its link."""
    text = "; ".join(_reasons(error)) if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split())


def description(error: BaseException) -> str:
    """Type and message of an error, as the main process shows it: ASCII, TEXT_BYTES bytes at most."""
    text = f"{type(error).__name__}: {message(error)}"
    return text.encode("ascii", "replace")[:TEXT_BYTES].decode()


def _reasons(error: ValidationError) -> Iterable[str]:
    """The reasons of a pydantic error, each once, with the field: vLLM names its fields as its flags."""
    reasons = (": ".join((*map(str, each["loc"][:1]), each["msg"])) for each in error.errors())
    return dict.fromkeys(reasons)


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def _module(error: BaseException) -> str:
    """Name of the module that raised an error, "" if it was not raised."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    return str(place.tb_frame.f_globals.get("__name__", "")) if place else ""
