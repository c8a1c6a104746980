"""The host-wide settings, by the name that task 1.1 gives them."""

from hxp_enterprise_llm.settings.host import ServiceManagerConfig

__all__ = ["ServiceManagerConfig"]
