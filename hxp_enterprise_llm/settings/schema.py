"""The settings of one instance as a frozen model. No I/O: `settings.config` reads the files."""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from hxp_enterprise_llm.settings.keys import INSTANCE_KEYS, INSTANCE_NAME, is_loopback

SECRETS = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"}
"""Variables from which huggingface_hub and older programs take a token of the hub."""


class ServiceConfigSchema(BaseModel):
    """Validated settings of one instance.

    The fields are the keys of its settings file in small letters, each with its rule in `settings.keys`: a value may be
    text as in the file, or what the rule makes of it.
    Sizes named `_gb` are in GiB (2**30 bytes), `max_request_mb` is in MiB (2**20 bytes), times named `_sec` are in
    seconds, `max_model_len` in tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{INSTANCE_NAME.pattern}$")
    model: str
    port: int
    host: str = "127.0.0.1"
    served_model_name: str = ""
    memory_limit_gb: float = 4.0
    cpu_cores: float = 2.0
    max_tasks: int = 1000
    restart_policy: str = "always"
    restart_sec: float = 10.0
    start_timeout_sec: float = 300.0
    drain_timeout_sec: float = 30.0
    hang_timeout_sec: float = 300.0
    client_timeout_sec: float = 300.0
    max_model_len: int | None = None
    kv_cache_gb: float | None = None
    gpu_devices: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    max_request_mb: float = 64.0
    max_connections: int = 1024
    api_key_file: str | None = None
    allow_unauthenticated: bool = False
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    allow_download: bool = False
    hub_token_file: str | None = None
    start_method: str = "fork"
    reload_method: str = "auto"
    vllm_args: tuple[str, ...] = ()
    environment: dict[str, str] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _by_the_rule_of_its_key(cls, value: Any, info: ValidationInfo) -> Any:
        key = INSTANCE_KEYS.get((info.field_name or "").upper())
        if key is None or value is None or value == "" or isinstance(value, bool | tuple | list):
            return value
        return key.accept(value)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        found = self.contradictions()
        if found:
            raise ValueError("\n".join(found))
        return self

    def contradictions(self) -> list[str]:
        """Errors in the combination of these settings, one sentence each."""
        return [*self._cache(), *self._unauthenticated(), *self._secrets(), *self._certificate()]

    def _cache(self) -> Iterator[str]:
        if self.kv_cache_gb is not None and not self.gpu_devices and self.kv_cache_gb >= self.memory_limit_gb:
            yield (
                f"KV_CACHE_GB={self.kv_cache_gb:g} must be below MEMORY_LIMIT_GB={self.memory_limit_gb:g}: "
                "on the CPU the cache is part of the service's memory"
            )

    def _unauthenticated(self) -> Iterator[str]:
        if not (is_loopback(self.host) or self.api_key_file or self.allow_unauthenticated):
            yield (
                f"HOST={self.host} is open to other hosts, and no API_KEY_FILE is set: make a key with citadel-llm key "
                f"add {self.name}, or write ALLOW_UNAUTHENTICATED=yes to let every host that reaches it use it"
            )

    def _secrets(self) -> Iterator[str]:
        # Every user can read settings files and command lines. engine.flags refuses --api-key too, but only this
        # refuses a draft before it is written.
        if "VLLM_API_KEY" in self.environment or any(
            part.replace("_", "-").startswith("--api-k") for part in self.vllm_args
        ):
            yield "an API key does not belong in a settings file: put it into a file and name that with API_KEY_FILE"
        for name in sorted(SECRETS & self.environment.keys()):
            yield f"{name} does not belong in a settings file: put it into a file and name that with HUB_TOKEN_FILE"

    def _certificate(self) -> Iterator[str]:
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            given, other = ("TLS_CERT_FILE", "TLS_KEY_FILE")[:: 1 if self.tls_cert_file else -1]
            yield f"{given} requires {other}"

    @property
    def api_name(self) -> str:
        """The model name that API requests carry."""
        return self.served_model_name or self.name
