"""Whether the log files of LOG_TO_FILE=yes can be written and are rotated."""

import os
from pathlib import Path

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.keys import HOST_KEYS, PACKAGE_USER
from hxp_enterprise_llm.settings.values import load_host

LOGROTATE_RULE = "/etc/logrotate.d/citadel-llm"


def findings(root: str = "/", logrotate: Path = Path("/usr/sbin/logrotate")) -> list[Finding]:
    """Warnings if logrotate or the directory is missing, or if the package's rule for logrotate names another one."""
    host = load_host(root).values
    if not host["LOG_TO_FILE"]:
        return []
    found = []
    path, rotated = Path(host["VLLM_LOG_PATH"]), str(HOST_KEYS["VLLM_LOG_PATH"].default)
    if path != Path(rotated):
        text = f"VLLM_LOG_PATH={path} is not {rotated}: change the directory in {LOGROTATE_RULE} too, or its files grow"
        found.append(Finding("host", text, fatal=False))
    if not os.path.isdir(Path(root, str(path)[1:])):  # noqa: PTH112  raises nothing
        # As debian/citadel-llm.tmpfiles creates the directory of the package. The log unit always runs as this user.
        text = f"VLLM_LOG_PATH={path} does not exist; install -d -o {PACKAGE_USER} -g adm -m 0750 {path}"
        found.append(Finding("host", text, fatal=False))
    if not logrotate.exists():
        text = "LOG_TO_FILE=yes, but logrotate is not installed: log files grow until the disk is full; install it"
        found.append(Finding("host", text, fatal=False))
    return found
