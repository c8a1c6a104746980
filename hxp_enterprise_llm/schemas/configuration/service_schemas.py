"""The settings of one instance, by the name that task 1.1 gives them."""

from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

__all__ = ["ServiceConfigSchema"]
