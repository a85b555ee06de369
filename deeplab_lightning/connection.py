"""Check whether a server answers within a time limit."""

import contextlib
import socket
import threading
import urllib.request
from urllib.parse import urlparse


def can_reach(url: str, *, seconds: float) -> bool:
    """Check whether a connection to a server opens in time, through the proxy of the environment if one is set.

    Args:
        url: The server's address, `http://` or `https://`.
        seconds: Time limit in seconds.
    """
    address = urlparse(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.netloc):
        address = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    port = address.port or (80 if address.scheme == "http" else 443)
    return can_connect(address.hostname or "", port, seconds=seconds)


def can_connect(host: str, port: int, *, seconds: float) -> bool:
    """Check whether a TCP connection opens in time.

    Args:
        host: Name or IP address.
        port: TCP port.
        seconds: Time limit in seconds, for the name lookup and all addresses of the host together.
    """
    opened = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=seconds):
            opened.set()

    # In a thread, since a name lookup has no time limit and each address of a host would get the whole time.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(seconds)
    return opened.is_set()
