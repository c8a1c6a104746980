"""The listening socket of an instance."""

import errno
import socket

import pytest

from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.supervisor.listener import disconnect_stalled_clients, listen


@pytest.fixture
def config() -> ServiceConfigSchema:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    values = {"name": "m", "model": "/srv/m", "port": port, "client_timeout_sec": 1}
    return ServiceConfigSchema.model_validate(values)


def connected_to(listener: socket.socket) -> socket.socket:
    client = socket.socket()
    client.connect(listener.getsockname())
    return client


def test_client_that_takes_nothing_is_disconnected(config: ServiceConfigSchema) -> None:
    with (
        listen(config) as listener,
        connected_to(listener),
        listener.accept()[0] as accepted,
    ):
        accepted.settimeout(60)
        with pytest.raises(OSError, match="timed out") as refused:
            while True:
                accepted.send(bytes(1 << 16))
    # The kernel's error; that of Python's own timeout has no number.
    assert refused.value.errno == errno.ETIMEDOUT


def test_new_timeout_applies_to_later_connections(config: ServiceConfigSchema) -> None:
    with listen(config) as listener:
        disconnect_stalled_clients(listener, config.model_copy(update={"client_timeout_sec": 2.5}))
        with connected_to(listener), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2500
