"""Probes of the endpoints of instances."""

import asyncio
import errno
import ssl
from collections.abc import Iterator

import httpx

from hxp_enterprise_llm.settings.address import Address

ANSWER_SEC = 3.0
"""How long the headers of an instance's answer may take (seconds); no client of the monitor waits for them."""


def client() -> httpx.AsyncClient:
    """One client for all instances. Each probe opens its own connection, so no answer can affect the next probe."""
    # Certificates are not verified: they do not name addresses of this host, and a probe neither leaves the host nor
    # carries a secret. A false instance would have the certificate too. Loading trusted certificates would take memory.
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    # Proxies in the environment are for other hosts.
    return httpx.AsyncClient(
        timeout=ANSWER_SEC,
        trust_env=False,
        verify=unverified,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def ask(asker: httpx.AsyncClient, address: Address) -> str | None:
    """Request /health; returns "" if the status is 200, else the problem. Does not read the body. Raises nothing.

    None if the monitor has no free file descriptor for the request, which says nothing about the instance.
    """
    url = f"{address.url}/health"
    try:
        async with asyncio.timeout(ANSWER_SEC), asker.stream("GET", url) as answer:
            return "" if answer.status_code == httpx.codes.OK else f"{url} answers {answer.status_code}"
    except (TimeoutError, httpx.TimeoutException):
        return f"{url} does not answer within {ANSWER_SEC:g} s"
    except httpx.ConnectError as error:
        return None if _ours(error) else f"{url} cannot be reached"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return None if _ours(error) else f"{url} does not answer in HTTP"


def _ours(error: BaseException) -> bool:
    """Whether the reason of an error is a lack of file descriptors in this process or on this host."""
    return any(isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE) for one in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes: httpx, httpcore and anyio each wrap it once."""
    while error:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _causes(one)
        error = error.__cause__ or error.__context__
