"""Asking an instance's own endpoint whether it answers."""

import asyncio
import errno
import ssl
from collections.abc import Iterator

import httpx

from hxp_enterprise_llm.settings.address import Address

ANSWER_SEC = 3.0
"""How long an instance has to answer from the first byte to the last header; nobody waits for it meanwhile."""


def client() -> httpx.AsyncClient:
    """One for all instances: each question has a connection of its own, so that no answer can spoil the next."""
    # Certificates are not verified: their names are not addresses of this host, what is asked never leaves it, carries
    # no secret, and an instance that would lie can do so with its own certificate. Those to trust would cost memory.
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    # The environment's proxies are for other hosts.
    return httpx.AsyncClient(
        timeout=ANSWER_SEC,
        trust_env=False,
        verify=unverified,
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def ask(asker: httpx.AsyncClient, address: Address) -> str | None:
    """Ask for /health; "" if the answer is 200, else what is wrong. The body is never read. Raises nothing.

    None is that it could not be asked, for want of a descriptor here: that says nothing of the instance.
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
        return None if _ours(error) else f"{url} answers something that is no HTTP"


def _ours(error: BaseException) -> bool:
    """Whether an error comes of this process's or this host's lack of descriptors."""
    return any(isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE) for one in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was made of: httpx, httpcore and anyio each wrap it once."""
    while error:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _causes(one)
        error = error.__cause__ or error.__context__
