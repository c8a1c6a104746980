"""Asking an instance's own endpoint whether it answers."""

import asyncio
import ssl

import httpx

from hxp_enterprise_llm.schemas.configuration.service_schemas import ServiceConfigSchema
from hxp_enterprise_llm.services.core.service_manager.readiness import base_url

ANSWER_SEC = 3.0
"""How long an instance has to answer from the first byte to the last header; nobody waits for it meanwhile."""


def client() -> httpx.AsyncClient:
    """One for all instances: each question has a connection of its own, so that no answer can spoil the next."""
    # The environment's proxies are for other hosts. No instance speaks TLS: certificates would only cost memory.
    return httpx.AsyncClient(
        timeout=ANSWER_SEC,
        trust_env=False,
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def ask(asker: httpx.AsyncClient, config: ServiceConfigSchema) -> str:
    """Ask for /health; "" if the answer is 200, else what is wrong. The body is never read. Raises nothing."""
    url = f"{base_url(config)}/health"
    try:
        async with asyncio.timeout(ANSWER_SEC), asker.stream("GET", url) as answer:
            return "" if answer.status_code == httpx.codes.OK else f"{url} answers {answer.status_code}"
    except (TimeoutError, httpx.TimeoutException):
        return f"{url} does not answer within {ANSWER_SEC:g} s"
    except httpx.ConnectError:
        return f"{url} cannot be reached"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        return f"{url} answers something that is no HTTP"
