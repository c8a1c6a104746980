"""The name that task 1.1 gives the service manager: `ServiceManager`, and `python -m` for a unit's main process."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hxp_enterprise_llm.control.service_manager import ServiceManager

__all__ = ["ServiceManager"]


def __getattr__(name: str) -> Any:
    # Imported on demand: a unit's main process imports this package, and needs neither D-Bus nor the class.
    if name != "ServiceManager":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hxp_enterprise_llm.control.service_manager import ServiceManager

    return ServiceManager
