"""Whether vLLM can read the values of its environment variables."""

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.engine import variables
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def findings(config: ServiceConfigSchema) -> list[Finding]:
    """Findings about the variables in the settings file."""
    return [Finding(config.name, text) for text in variables.findings(config.environment)]
