"""Names of the units, and the instance that a unit runs: the one place that knows how one becomes the other."""

TARGET = "citadel-llm.target"
"""Enabled instances are wanted by this unit (WantedBy= in the template)."""
MONITOR = "citadel-llm-monitor.service"
LOG_TEMPLATE = "citadel-llm-log@.service"
"""Template of the units that write log files, one for each instance if LOG_TO_FILE=yes."""
PREFIX, SUFFIX = "citadel-llm@", ".service"


def unit_name(instance: str) -> str:
    """The unit of an instance; `*` gives the pattern of them all."""
    return f"{PREFIX}{instance}{SUFFIX}"


def instance_of(unit: str) -> str | None:
    """The instance that a unit runs, None if the unit is not of the template."""
    if not unit.startswith(PREFIX) or not unit.endswith(SUFFIX):
        return None
    return unit.removeprefix(PREFIX).removesuffix(SUFFIX)


def log_unit_name(instance: str) -> str:
    """The unit that writes the log file of an instance."""
    return LOG_TEMPLATE.replace("@", f"@{instance}")


def is_log_unit(unit: str) -> bool:
    """Whether a unit writes the log file of an instance."""
    prefix, suffix = LOG_TEMPLATE.split("@")
    return unit.startswith(f"{prefix}@") and unit.endswith(suffix)
