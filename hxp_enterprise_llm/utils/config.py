"""Settings files to schema, by the name that task 1.1 gives it."""

from hxp_enterprise_llm.settings.config import exists, instance_names, load

__all__ = ["exists", "instance_names", "load"]
