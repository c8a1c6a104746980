"""Where the services live and what they default to: the host-wide settings as a frozen model."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from hxp_enterprise_llm.utils.errors import SettingsRefused
from hxp_enterprise_llm.utils.settings import load_host


class ServiceManagerConfig(BaseModel):
    """Host-wide settings. Memory in GiB, CPU in cores, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service_template_path: str = "/opt/citadel/config/services"
    log_path: str = "/var/log/citadel-llm"
    pid_path: str = "/run/citadel-llm"
    user: str = "agent0"
    group: str = "agent0"
    default_memory_limit_gb: float = 4.0
    default_cpu_cores: float = 2.0
    default_max_tasks: int = 1000
    restart_policy: str = "always"
    restart_sec: float = 10.0

    @classmethod
    def load(cls, root: str = "/") -> Self:
        """Read /etc/default/citadel-llm below `root`. Raises SettingsRefused with every fault of it."""
        host = load_host(root)
        fatal = [fault for fault in host.faults if fault.fatal]
        if fatal:
            raise SettingsRefused(fatal)
        keys = {field: field.upper() for field in cls.model_fields}
        keys |= {field: f"VLLM_{field.upper()}" for field in keys if f"VLLM_{field.upper()}" in host.values}
        keys |= {field: f"DEFAULT_{field.upper()}" for field in keys if f"DEFAULT_{field.upper()}" in host.values}
        return cls(**{field: host.values[key] for field, key in keys.items()})
