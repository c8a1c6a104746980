"""Order and dependencies of many instances, by the name that task 1.1 gives them."""

from hxp_enterprise_llm.control.order import in_order
from hxp_enterprise_llm.settings.order import dependencies, order, with_required

__all__ = ["dependencies", "in_order", "order", "with_required"]
