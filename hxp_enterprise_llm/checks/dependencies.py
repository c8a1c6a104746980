"""Whether the instances in REQUIRES and AFTER exist, and whether they can be started in some order."""

from collections.abc import Mapping

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.errors import DependencyCycle
from hxp_enterprise_llm.settings.order import order
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def of_instance(config: ServiceConfigSchema, names: list[str]) -> list[Finding]:
    """Findings about REQUIRES and AFTER of one instance; `names` are all instances."""
    found = []
    for earlier in sorted({*config.after} - {*names, *config.requires}):
        text = f"AFTER={earlier}: there is no such instance; {config.name} will not wait for it"
        found.append(Finding(config.name, text, fatal=False))
    for needed in config.requires:
        if needed not in names:
            text = f"REQUIRES={needed}: there is no such instance; there are: {', '.join(names)}"
            found.append(Finding(config.name, text))
    if config.name in {*config.requires, *config.after}:
        text = f"REQUIRES or AFTER names {config.name} itself, which is ignored"
        found.append(Finding(config.name, text, fatal=False))
    return found


def cycles(names: list[str], after: Mapping[str, set[str]]) -> list[Finding]:
    """Instances that wait for each other; `after` has the instances that each one starts after."""
    try:
        order(names, after)
    except DependencyCycle as error:
        return [Finding(name, str(error)) for name in sorted(set(error.cycle))]
    return []
