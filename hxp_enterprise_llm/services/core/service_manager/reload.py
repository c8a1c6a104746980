"""What a reload can change, what it takes, and how systemctl learns of it. The unit's ExecReload= is the other half."""

import logging
from contextlib import suppress
from pathlib import Path

from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.services.core.service_manager import engine
from hxp_enterprise_llm.utils.errors import SettingsRefused
from hxp_enterprise_llm.utils.settings import instance_file
from hxp_enterprise_llm.utils.settings_file import Fault
from hxp_enterprise_llm.utils.settings_keys import GIBIBYTE, memory_high

log = logging.getLogger(__name__)


def check(old: ServiceConfigSchema, new: ServiceConfigSchema) -> None:
    """Raises SettingsRefused for a change of what belongs to the unit's start: packet filter, socket, credentials."""
    for key in ("host", "port", "api_key_file"):
        if getattr(new, key) != getattr(old, key):
            text = f"{key.upper()} changed, which takes a restart, not a reload"
            raise SettingsRefused([Fault(instance_file(old.name), 0, text)])


def fits_beside(
    old: ServiceConfigSchema, old_model: str, new: ServiceConfigSchema, new_model: str, limit_gb: float
) -> bool:
    """Whether a second server fits beside the first below the limit that the unit runs with (GiB)."""
    if old.gpu_devices or new.gpu_devices:
        # The memory that counts is the GPU's, of which vLLM takes what it is given at once.
        return False
    # The old model's files may have gone meanwhile.
    with suppress(SettingsRefused):
        both = sum(
            engine.weights_bytes(model) / GIBIBYTE + (engine.cache_gb(config, model) or 0) + engine.OVERHEAD_GB
            for config, model in ((old, old_model), (new, new_model))
        )
        return both <= memory_high(limit_gb) / GIBIBYTE
    return False


def answer(run_time: Path, refused: str = "") -> None:
    """Tell the unit's ExecReload= that the reload is taken up, or why it is not."""
    if refused:
        try:
            (run_time / "refused").write_text(refused + "\n", encoding="utf-8")
        except OSError as error:
            log.warning("systemctl cannot be told: %s", error)
    (run_time / "reload").unlink(missing_ok=True)
