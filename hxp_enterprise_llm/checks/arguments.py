"""Whether vLLM would accept VLLM_ARGS."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.engine import flags, middleware
from hxp_enterprise_llm.engine.model_directory import CACHE, HIDDEN, MODELS, PRIVATE, hidden_in
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

FILES = (
    "allowed_local_media_path", "chat_template", "hf_config_path", "log_config_file", "reasoning_parser_plugin",
    "spec_model", "tokenizer", "tool_parser_plugin",
)  # fmt: skip
"""Flags with a file or directory that a start needs. Others may be created (--download-dir), or be a URL's path."""


def findings(config: ServiceConfigSchema, private: Iterable[str] = PRIVATE) -> list[Finding]:
    """Findings about the flags themselves; `model` and vLLM check whether they suit the model.

    `private` are directories that each service has for itself.
    """
    given = flags.parse(config.vllm_args)
    texts = list(given.findings)
    for name in given.get("middleware", ()):
        if refusal := middleware.refusal(name):
            texts.append(f"VLLM_ARGS: --middleware {name} {refusal}")
    if not config.gpu_devices and given.get("enforce_eager") is False:
        # torch.compile on a CPU needs a C++ compiler and writable, executable memory; the unit has neither.
        texts.append("VLLM_ARGS: --no-enforce-eager cannot be used: on a CPU nothing is compiled here")
    for path in paths(config):
        if refusal := _refusal(config, path, tuple(private)):
            texts.append(f"VLLM_ARGS: {refusal}")
    return [Finding(config.name, text) for text in texts]


def paths(config: ServiceConfigSchema) -> Iterator[str]:
    """The absolute paths in the flags that must exist; another value may be the name of a model in the hub."""
    given = flags.parse(config.vllm_args)
    values = [given.get(name) for name in FILES]
    if any(character in (given.get("chat_template") or "") for character in "{}\n"):
        # The template itself (vllm/renderers/chat_utils.py, validate_chat_template).
        values.remove(given.get("chat_template"))
    values.append((given.get("speculative_config") or {}).get("model"))
    for module in given.get("lora_modules") or ():
        values.append(module.get("path") if isinstance(module, dict) else module.partition("=")[2])
    return (value for value in values if isinstance(value, str) and value.startswith("/"))


def _refusal(config: ServiceConfigSchema, path: str, private: tuple[str, ...]) -> str:
    """Why a service cannot use a file or directory; empty if it can, as far as this user can see."""
    error = ""
    try:
        Path(path).stat()
        if not os.access(path, os.R_OK):
            error = f"{path} cannot be read by this service's user"
    except (FileNotFoundError, NotADirectoryError):
        error = f"{path} does not exist"
    except OSError as reason:
        error = f"{path} cannot be read ({reason.strerror})"
    # The directories that are hidden look empty to the service itself; `model_directory.unseen` names them to root.
    hidden = hidden_in(Path(path), (*private, *(HIDDEN if error else ())), (MODELS, CACHE / config.name))
    return f"services cannot see {hidden}, so not {path}; copy it beside the model" if hidden else error
