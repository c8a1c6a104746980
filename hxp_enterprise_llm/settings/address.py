"""The address of an instance's API."""

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
    """The scheme, address and port on which an instance listens, from HOST, PORT and TLS_CERT_FILE."""

    model_config = ConfigDict(frozen=True)

    scheme: Literal["http", "https"]
    host: Annotated[str, AfterValidator(keys.address)]
    port: Annotated[int, Field(strict=True, ge=1024, le=65535)]

    @classmethod
    def of(cls, config: ServiceConfigSchema) -> "Address":
        """The address in the settings of an instance."""
        return cls(scheme="https" if config.tls_cert_file else "http", host=config.host, port=config.port)

    @property
    def tls(self) -> bool:
        """Whether the scheme is HTTPS."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Address and port as in a URL, for clients on this host."""
        return authority(self.host, self.port)

    @property
    def url(self) -> str:
        """The base URL of the API, for clients on this host."""
        return f"{self.scheme}://{self.authority}"
