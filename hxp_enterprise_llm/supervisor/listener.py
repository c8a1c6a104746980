"""The listener: the main process owns the socket, and clients wait in its queue while no server accepts."""

import errno
import socket

from hxp_enterprise_llm.protocol.worker import BACKLOG
from hxp_enterprise_llm.settings.errors import AddressMissing, PortTaken
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def listen(config: ServiceConfigSchema) -> socket.socket:
    """Bind the instance's address. Raises PortTaken, or AddressMissing if HOST is not an address of this host."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"PORT={config.port} on {config.host} is taken by another process; "
                f"`ss -ltnp 'sport = :{config.port}'` names it. Stop it or choose another PORT"
            ) from None
        # systemd starts the service again: at boot the address may be added later.
        raise AddressMissing(
            f"HOST={config.host} cannot be listened on: {error.strerror}; write an address of this host"
        ) from None
    return listener
