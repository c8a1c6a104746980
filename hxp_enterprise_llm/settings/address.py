"""Where an instance's API is."""

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hxp_enterprise_llm.settings import keys
from hxp_enterprise_llm.settings.keys import EVERY_ADDRESS
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def authority(host: str, port: int) -> str:
    """Address and port as in a URL of this host; a listener on every address is reached by the loopback one."""
    host = EVERY_ADDRESS.get(host, host)
    return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"


class Address(BaseModel):
    """The address that it listens on, as HOST and PORT have it, and what it speaks there."""

    model_config = ConfigDict(frozen=True)

    scheme: Literal["http", "https"]
    host: Annotated[str, AfterValidator(keys.address)]
    port: Annotated[int, Field(strict=True, ge=1024, le=65535)]

    @classmethod
    def of(cls, config: ServiceConfigSchema) -> "Address":
        """Where the settings put it."""
        return cls(scheme="https" if config.tls_cert_file else "http", host=config.host, port=config.port)

    @property
    def tls(self) -> bool:
        """Whether it speaks HTTPS."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Where this host reaches it: address and port as in a URL."""
        return authority(self.host, self.port)

    @property
    def url(self) -> str:
        """What paths of the API are appended to, on this host."""
        return f"{self.scheme}://{self.authority}"
