"""Where computed things wait for the next run, and how they are written."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from deeplab_lightning.files import write_atomically

Row = npt.NDArray[np.int64]


def cache_folder() -> Path:
    """`$DEEPLAB_CACHE`, or `deeplab_lightning` in the user's cache folder. It can be deleted at any time."""
    if chosen := os.environ.get("DEEPLAB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeplab_lightning"


def content_key(*parts: object) -> str:
    """A short name for what something depends on."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


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


def cached_rows(
    store: Path, keys: Sequence[str], width: int, compute: Callable[[list[int]], Iterable[Row | None]]
) -> dict[str, Row]:
    """Numbers of each file that are computed once, and again only for files that changed.

    Args:
        store: The `.npz` file that remembers them, and those of other keys: two lists may share a folder.
        keys: What each file's row depends on, such as its path, size and time.
        width: Numbers in a row.
        compute: Takes indices into `keys` and yields their (width,) int64 rows, or None where there is none.

    Returns:
        Row by key, without those that were None.
    """
    known = _read_rows(store, width)
    missing = [index for index, key in enumerate(keys) if key not in known]
    for index, row in zip(missing, compute(missing), strict=True):
        if row is not None:
            known[keys[index]] = row
    if missing:
        rows = np.array(list(known.values()), dtype=np.int64).reshape(-1, width)
        try_cache(store, lambda file: np.savez_compressed(file, keys=np.array(list(known)), rows=rows))
    return known


def _read_rows(store: Path, width: int) -> dict[str, Row]:
    try:
        with np.load(store) as content:
            rows = content["rows"]
            if rows.shape[1:] != (width,):
                return {}
            return dict(zip((str(key) for key in content["keys"]), rows, strict=True))
    except (OSError, ValueError, KeyError):  # absent or damaged: compute again
        return {}
