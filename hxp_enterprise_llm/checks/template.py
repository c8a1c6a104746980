"""Whether the directory in VLLM_SERVICE_TEMPLATE_PATH has the link to the template of the units."""

from pathlib import Path

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.units import unit_name
from hxp_enterprise_llm.settings.values import load_host

TEMPLATE = f"/lib/systemd/system/{unit_name('')}"


def findings(root: str = "/") -> list[Finding]:
    """A warning if the link is missing: no running service needs it."""
    directory = load_host(root).values["VLLM_SERVICE_TEMPLATE_PATH"]
    link = f"{directory}/{unit_name('')}"
    if Path(root, link[1:]).exists():
        return []
    text = (
        f"VLLM_SERVICE_TEMPLATE_PATH={directory}: there is no link {link} to the template; "
        f"ln -s {TEMPLATE} {link}, or correct VLLM_SERVICE_TEMPLATE_PATH"
    )
    return [Finding("host", text, fatal=False)]
