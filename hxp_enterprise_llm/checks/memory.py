"""Whether the memory limits of instances that run together fit in the host's memory."""

from collections.abc import Iterable

import psutil

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.keys import GIBIBYTE
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def findings(configs: Iterable[ServiceConfigSchema]) -> list[Finding]:
    """A warning, not an error, if the sum exceeds the host's memory: not every instance uses all of its limit."""
    configs = list(configs)
    total = psutil.virtual_memory().total / GIBIBYTE
    promised = sum(config.memory_limit_gb for config in configs)
    if promised <= total:
        return []
    names = ", ".join(f"{config.name} {config.memory_limit_gb:g}" for config in configs)
    text = (
        f"limits exceed the host: MEMORY_LIMIT_GB of all running or enabled instances together is "
        f"{promised:g} ({names}), and the host has {total:.1f}; lower a limit, or disable an instance"
    )
    return [Finding("host", text, fatal=False)]
