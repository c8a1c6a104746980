"""Whether the GPUs in the settings exist."""

from pathlib import Path

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.errors import ExitStatus, GpuMissing
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def findings(config: ServiceConfigSchema, devices: Path = Path("/dev")) -> list[Finding]:
    """The first GPU without a device file."""
    for number in config.gpu_devices:
        device = devices / ("nvidiactl" if number == "all" else f"nvidia{number}")
        if not device.exists():
            text = f"GPU_DEVICES={','.join(config.gpu_devices)}: there is no {device}; is the driver loaded?"
            return [Finding(config.name, text, status=ExitStatus.UNAVAILABLE, code=GpuMissing.code)]
    return []
