"""Whether there is disk space for the engine's caches."""

import shutil
from pathlib import Path

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.engine.model_directory import CACHE
from hxp_enterprise_llm.settings.keys import GIBIBYTE

CACHE_SPACE_BYTES = GIBIBYTE
"""The check warns if less disk space is free; a rounded estimate, not a measurement."""


def findings(cache: Path = CACHE, wanted_bytes: int = CACHE_SPACE_BYTES) -> list[Finding]:
    """An error if the directory of caches is missing; a warning if less than `wanted_bytes` are free."""
    if not cache.is_dir():
        return [Finding("host", f"{cache} is missing; systemd-tmpfiles --create creates it")]
    free = shutil.disk_usage(cache).free
    if free >= wanted_bytes:
        return []
    return [Finding("host", f"{cache} has only {free / 1e6:.0f} MB free; make room for caches", fatal=False)]
