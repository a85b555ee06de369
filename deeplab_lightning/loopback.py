"""Let the processes of a training on one machine talk over its loopback interface alone."""

import os
import socket
import sys
from typing import Any

import torch.distributed
from lightning.fabric.plugins.environments import LightningEnvironment

_LOOPBACK = "127.0.0.1"


class LoopbackEnvironment(LightningEnvironment):
    """Start the store of the processes so that only this machine reaches it.

    PyTorch's store accepts connections on all interfaces and has no password. Here the first process opens it before
    PyTorch does, which then uses the one that is there. Gloo, which connects the processes on CPUs, is told the
    interface. Both leave an address or interface alone that the environment variables name.
    """

    def __init__(self) -> None:
        super().__init__()
        self._store: Any = None

    @property
    def main_port(self) -> int:
        """Return the port of the store, which the first process opens when it is asked."""
        is_first = "LOCAL_RANK" not in os.environ  # the others are started with it
        if self._main_port == -1 and is_first and not torch.distributed.is_initialized():
            if sys.platform == "linux":
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            if self.main_address == _LOOPBACK:
                self._main_port = self._open_store(int(os.environ.get("MASTER_PORT", 0)))
        return super().main_port

    def _open_store(self, port: int) -> int:
        """Open the store at a port, or at any free one for 0, and return the port."""
        listener = socket.create_server((_LOOPBACK, port))
        port = listener.getsockname()[1]
        self._store = torch.distributed.TCPStore(
            _LOOPBACK,
            port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,  # PyTorch's own of the same port is then this one
            master_listen_fd=listener.detach(),
        )
        return port
