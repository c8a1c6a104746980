"""Whether the model exists, is complete and readable, and suits the settings."""

from collections.abc import Callable

from hxp_enterprise_llm.checks.finding import Finding, of_error
from hxp_enterprise_llm.engine import model_config, model_directory, sizes, weights
from hxp_enterprise_llm.settings.errors import CitadelError, ModelMissing, SettingsRefused
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def findings(config: ServiceConfigSchema) -> tuple[str, list[Finding]]:
    """The model to pass to vLLM, empty if there is none, and the findings about it."""
    try:
        model = model_directory.find_model(config)
    except ModelMissing as error:
        return "", of_error(config.name, error)
    found = []
    if model.startswith("/"):
        found += _found(config, lambda: _of_config(config, model))
        found += _found(config, lambda: weights.check(config, model))
    found += _found(config, lambda: sizes.cache_gb(config, model))
    return model, found


def _found(config: ServiceConfigSchema, check: Callable[[], object]) -> list[Finding]:
    try:
        result = check()
    except SettingsRefused as error:
        return [Finding(config.name, refused.text) for refused in error.findings]
    except CitadelError as error:
        return of_error(config.name, error)
    return result if isinstance(result, list) else []


def _of_config(config: ServiceConfigSchema, model: str) -> list[Finding]:
    errors, warnings = model_config.check(config, model)
    return [
        *(Finding(config.name, text) for text in errors),
        *(Finding(config.name, text, fatal=False) for text in warnings),
    ]
