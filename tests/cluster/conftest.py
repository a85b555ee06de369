"""Keep what Ray writes apart for each test process, in a folder with a short path."""

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_ray_folder() -> Iterator[None]:
    """Set the folder of Ray's sockets, whose paths may have 107 characters, and of the address of its last cluster."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        yield
        del os.environ["RAY_TMPDIR"]
