"""The pre-start check of one instance: everything that a start needs, before anything is started."""

import logging
from pathlib import Path

from hxp_enterprise_llm.engine import flags, launch, model_config, model_directory, weights
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.errors import GpuMissing, ModelMissing, SettingsRefused
from hxp_enterprise_llm.settings.grammar import Fault
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

log = logging.getLogger(__name__)


def prepare(name: str, root: str = "/", file: str | None = None) -> tuple[ServiceConfigSchema, str]:
    """Read and check the settings of `name`, down to the flags for vLLM; the settings and the model to load.

    `file` is a draft of the settings file to read instead of the file in place.
    Raises SettingsRefused, ModelMissing or GpuMissing; logs the warnings.
    """
    before: tuple[Fault, ...] = ()
    try:
        config, warnings = settings.load(name, root, file)
    except SettingsRefused as error:
        if error.understood is None:
            raise
        # There may be more to say.
        config, warnings, before = error.understood, [], error.faults
    for warning in warnings:
        log.warning("%s", warning)
    refused = list(flags.parse(config.vllm_args).findings)
    model = ""
    try:
        model = model_directory.find_model(config)
        if model.startswith("/"):
            faults, doubts = model_config.check(config, model)
            refused += faults
            weights.check(config, model)
            for doubt in doubts:
                log.warning("%s", doubt)
        launch.arguments(config, model)
    except ModelMissing as error:
        if not refused and not before:
            raise
        refused.append(str(error))
    except SettingsRefused as error:
        refused += [fault.text for fault in error.faults]
    if refused or before:
        faults_now = (Fault(settings.instance_file(name, root), 0, text) for text in refused)
        raise SettingsRefused([*before, *faults_now], config)
    for number in config.gpu_devices:
        device = Path("/dev/nvidiactl" if number == "all" else f"/dev/nvidia{number}")
        if not device.exists():
            raise GpuMissing(f"GPU_DEVICES={','.join(config.gpu_devices)}: there is no {device}; is the driver loaded?")
    return config, model
