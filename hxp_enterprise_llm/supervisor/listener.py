"""The listener: the main process owns the socket, and clients wait in its queue while no server accepts."""

import errno
import socket

from hxp_enterprise_llm.protocol.worker import BACKLOG
from hxp_enterprise_llm.settings.errors import AddressMissing, PortTaken
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema


def disconnect_stalled_clients(listener: socket.socket, config: ServiceConfigSchema) -> None:
    """Make the kernel end connections whose client takes no byte for CLIENT_TIMEOUT_SEC; applies to later connections.

    Accepted connections inherit this from the listener (tcp(7)). An answer that nobody reads waits in the kernel's
    queues, where the server cannot see it.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(config.client_timeout_sec * 1000))


def listen(config: ServiceConfigSchema) -> socket.socket:
    """Bind the instance's address. Raises PortTaken, or AddressMissing if HOST is not an address of this host."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    disconnect_stalled_clients(listener, config)
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
