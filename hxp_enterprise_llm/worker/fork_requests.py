"""Lets the fork server start processes for the main process only.

multiprocessing's fork server runs what any process of its user asks for, such as an engine, which would so run code
outside its Landlock domain.
"""

import errno
import os
import socket
import struct
from multiprocessing import forkserver
from types import SimpleNamespace
from typing import Any


class FromParent(socket.socket):
    """A socket that accepts connections of this process's parent; it drops others, with ConnectionAbortedError."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection."""
        connection, address = super().accept()
        # struct ucred, which has the process that connected.
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid != os.getppid():
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, f"process {pid} may not start processes here")
        return connection, address


def accept_from_parent_only() -> None:
    """Make multiprocessing's fork server, in this process, use such a socket; it continues after ECONNABORTED."""
    # Its name for the module `socket`.
    forkserver.socket = SimpleNamespace(**vars(socket) | {"socket": FromParent})  # type: ignore[attr-defined]
