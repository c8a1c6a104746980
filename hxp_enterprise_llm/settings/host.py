"""The host-wide settings as a frozen model: addresses, directories, accounts and defaults."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.keys import DYNAMIC_USER, HOST_KEYS, PACKAGE_USER, Key
from hxp_enterprise_llm.settings.values import load_host


def _key(field: str) -> Key:
    """The key in /etc/default/citadel-llm for a field: its name in capitals, in some cases after VLLM_ or DEFAULT_."""
    return next(
        HOST_KEYS[name] for prefix in ("", "VLLM_", "DEFAULT_") if (name := prefix + field.upper()) in HOST_KEYS
    )


class ServiceManagerConfig(BaseModel):
    """Host-wide settings. Memory in GiB, CPU in cores, times in seconds.

    The rule for each field is the rule for its key in `keys`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    citadel_env: str = "production"
    server_ip: str = "127.0.0.1"
    server_hostname: str = "localhost"
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
    citadel_restart_on_upgrade: bool = True
    allow_unauthenticated: bool = False
    health_port: int = 8000
    metrics_port: int = 9090

    @property
    def dynamic_user(self) -> bool:
        """Whether each instance has a user of its own."""
        return self.user == DYNAMIC_USER

    @property
    def owner(self) -> str:
        """The user that downloads models, and to which their files belong."""
        return PACKAGE_USER if self.dynamic_user else self.user

    @field_validator("*", mode="before")
    @classmethod
    def _by_the_rule_of_its_key(cls, value: Any, info: ValidationInfo) -> Any:
        return value if isinstance(value, bool) else _key(info.field_name or "").accept(value)

    @classmethod
    def load(cls, root: str = "/") -> Self:
        """Read /etc/default/citadel-llm below `root`. Raises SettingsRefused with all errors of the file."""
        host = load_host(root)
        fatal = [finding for finding in host.findings if finding.fatal]
        if fatal:
            raise SettingsRefused(fatal)
        return cls(**{field: host.values[_key(field).name] for field in cls.model_fields})
