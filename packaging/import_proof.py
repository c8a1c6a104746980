"""Write which modules of vLLM and of other libraries for serving text can be imported: `python import_proof.py FILE`.

Run it before and after trimming: two equal files prove that no needed file was removed. Many modules of vLLM are for
hardware or libraries that are absent here; they fail both times.
"""

import contextlib
import gc
import importlib
import io
import json
import pkgutil
import sys
import warnings
from pathlib import Path

# Modules that vLLM imports for a request or a flag; the walk through its modules does not find these.
ON_DEMAND = (
    "hxp_enterprise_llm.cli", "hxp_enterprise_llm.monitoring.daemon", "huggingface_hub", "openai.resources",
    "xgrammar", "llguidance", "outlines_core", "lmformatenforcer", "numba", "mcp", "grpc", "PIL.Image",
    "mistral_common.tokens.tokenizers.mistral", "sentencepiece", "tiktoken", "openai_harmony", "pycountry",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "transformers.models.llama.modeling_llama", "transformers.models.mistral.modeling_mistral",
    "transformers.models.mixtral.modeling_mixtral", "transformers.models.phi3.modeling_phi3",
    "transformers.convert_slow_tokenizer", "torch.distributed.checkpoint", "torch.onnx", "torch._inductor.compile_fx",
    "sympy.printing.pycode", "sympy.stats", "networkx.algorithms", "email_validator",
)  # fmt: skip
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Phi3ForCausalLM")
"""The architectures of the preconfigured instances; they must be importable."""


def outcome(module: str) -> str:
    try:
        importlib.import_module(module)
    except BaseException as error:
        # A module may also end the process, or be a test that skips itself.
        return type(error).__name__
    return "imported"


def vllm_modules() -> list[str]:
    import vllm

    found = pkgutil.walk_packages(vllm.__path__, "vllm.", onerror=lambda _: None)
    names = (module.name for module in found)
    # A process loads the kernels for its CPU only; loading a second variant would end the process.
    return [name for name in names if not name.rpartition(".")[2].startswith("_C") and not name.endswith("__main__")]


def proof() -> dict[str, str]:
    from vllm.model_executor.models import ModelRegistry

    import hxp_enterprise_llm.worker.preload  # noqa: F401

    results = {f"architecture {name}": ModelRegistry.models[name].load_model_cls().__name__ for name in ARCHITECTURES}
    return results | {name: outcome(name) for name in [*ON_DEMAND, *vllm_modules()]}


if __name__ == "__main__":
    gc.disable()
    warnings.simplefilter("ignore")
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        results = proof()
    if absent := [name for name in ON_DEMAND if results[name] != "imported"]:
        sys.exit(f"imports: these modules are needed and cannot be imported: {', '.join(absent)}")
    Path(sys.argv[1]).write_text(json.dumps(results, indent=0, sort_keys=True), encoding="utf-8")
    print(f"imports: {sum(value == 'imported' for value in results.values())} of {len(results)} modules")
