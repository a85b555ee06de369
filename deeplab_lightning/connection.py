"""Whether a server answers in time."""

import contextlib
import socket
import threading
import urllib.request
from urllib.parse import urlparse


def can_reach(url: str, *, seconds: float) -> bool:
    """Check whether a connection opens within the time, through the environment's proxy where there is one."""
    address = urlparse(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.netloc):
        address = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    port = address.port or (80 if address.scheme == "http" else 443)
    return can_connect(address.hostname or "", port, seconds=seconds)


def can_connect(host: str, port: int, *, seconds: float) -> bool:
    """Check whether a TCP connection opens within the time."""
    opened = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=seconds):
            opened.set()

    # In a thread: a name lookup has no time limit, and each address of a host would get the whole time.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(seconds)
    return opened.is_set()
