"""Whether vLLM would accept VLLM_ARGS."""

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.engine import flags, middleware
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def findings(config: ServiceConfigSchema) -> list[Finding]:
    """Findings about the flags themselves; `model` and vLLM check whether they suit the model."""
    given = flags.parse(config.vllm_args)
    texts = list(given.findings)
    for name in given.get("middleware", ()):
        if refusal := middleware.refusal(name):
            texts.append(f"VLLM_ARGS: --middleware {name} {refusal}")
    if not config.gpu_devices and given.get("enforce_eager") is False:
        # torch.compile on a CPU needs a C++ compiler and writable, executable memory; the unit has neither.
        texts.append("VLLM_ARGS: --no-enforce-eager cannot be used: on a CPU nothing is compiled here")
    return [Finding(config.name, text) for text in texts]
