"""Where computed things wait for the next run, and how they are written."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO


def cache_folder() -> Path:
    """`$DEEPLAB_CACHE`, or `deeplab_lightning` in the user's cache folder. It can be deleted at any time."""
    if chosen := os.environ.get("DEEPLAB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeplab_lightning"


def content_key(*parts: object) -> str:
    """A short name for what something depends on."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def try_cache(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Like `write_atomically`, but a full or read-only disk only costs the time to compute again."""
    try:
        write_atomically(path, write)
    except OSError as error:
        warnings.warn(
            f"cannot write to the cache {path.parent} ({error}); going on without it. "
            "Set DEEPLAB_CACHE to a folder with space.",
            stacklevel=2,
        )
