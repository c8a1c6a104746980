"""Unit names: from an instance to its unit and back, and to the user of its unit."""

import re

TARGET = "citadel-llm.target"
"""The unit that wants all enabled instances (WantedBy= in the template)."""
MONITOR = "citadel-llm-monitor.service"
LOG_TEMPLATE = "citadel-llm-log@.service"
"""Template of the units that write log files, one for each instance if LOG_TO_FILE=yes."""
PREFIX, SUFFIX = "citadel-llm@", ".service"


def unit_name(instance: str) -> str:
    """The unit of an instance; `*` gives the pattern for all units."""
    return f"{PREFIX}{instance}{SUFFIX}"


def instance_of(unit: str) -> str | None:
    """The instance of a unit, None if the unit does not belong to the template."""
    if not unit.startswith(PREFIX) or not unit.endswith(SUFFIX):
        return None
    return unit.removeprefix(PREFIX).removesuffix(SUFFIX)


def user_name(instance: str) -> str:
    """The user of an instance if VLLM_USER=dynamic.

    It is unique, and within the 31 letters, digits, _ and - that systemd allows (systemd.syntax(7), "User/Group Name
    Syntax"); an instance's name may have 64 characters, also capitals and dots.
    """
    # Imported here: the generator does not need it otherwise, and it takes 2 ms.
    import hashlib

    digest = hashlib.sha256(instance.encode()).hexdigest()
    return f"llm-{re.sub('[^a-z0-9_]', '-', instance.lower())[:17]}-{digest[:8]}"


def log_unit_name(instance: str) -> str:
    """The unit that writes the log file of an instance."""
    return LOG_TEMPLATE.replace("@", f"@{instance}")


def is_log_unit(unit: str) -> bool:
    """Whether a unit writes the log file of an instance."""
    prefix, suffix = LOG_TEMPLATE.split("@")
    return unit.startswith(f"{prefix}@") and unit.endswith(suffix)
