"""Whether the memory limits of instances that run together fit in the host's memory."""

from collections.abc import Iterable

import psutil

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.keys import GIBIBYTE
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def findings(configs: Iterable[ServiceConfigSchema]) -> list[Finding]:
    """A warning, not an error, if the sum exceeds the host's memory: not every instance uses all of its limit.

    `configs` are the instances that run, start at boot or are asked about.
    """
    configs = list(configs)
    total = psutil.virtual_memory().total / GIBIBYTE
    promised = sum(config.memory_limit_gb for config in configs)
    if promised <= total:
        return []
    if len(configs) == 1:
        text = f"MEMORY_LIMIT_GB={promised:g} of {configs[0].name} exceeds the host's memory, {total:.1f} GB; lower it"
        return [Finding("host", text, fatal=False)]
    names = ", ".join(f"{config.name} {config.memory_limit_gb:g}" for config in configs)
    text = (
        f"if these instances run together, their limits of {promised:g} GB ({names}) exceed the host's memory, "
        f"{total:.1f} GB; lower a limit, or disable an instance"
    )
    return [Finding("host", text, fatal=False)]
