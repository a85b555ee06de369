"""Store computed values in the user's cache folder for later runs."""

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
    """Return `$DEEPLAB_CACHE`, or `deeplab_lightning` in the user's cache folder. It may be deleted at any time."""
    if chosen := os.environ.get("DEEPLAB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeplab_lightning"


def content_key(*parts: object) -> str:
    """Hash the parts that a value depends on to a short name of 32 hexadecimal digits."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def try_cache(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a cache file, and only warn if the disk is full or read-only.

    Args:
        path: The file; its folder is made if needed.
        write: Called with the open binary file.
    """
    try:
        write_atomically(path, write)
    except OSError as error:
        warnings.warn(
            f"cannot write to the cache {path.parent} ({error}); continuing without it. "
            "Set DEEPLAB_CACHE to a folder with space.",
            stacklevel=2,
        )


def cached_rows(
    store: Path, keys: Sequence[str], width: int, compute: Callable[[list[int]], Iterable[Row | None]]
) -> dict[str, Row]:
    """Compute one row of numbers per file, or read it from the cache if the file has not changed.

    Args:
        store: The `.npz` file that stores the rows. Rows of other keys in it are kept, since two lists of
            files may share a folder.
        keys: Everything each file's row depends on, such as its path, size and time, as one key per file.
        width: Number of values in a row.
        compute: Function from indices into `keys` to their (width,) int64 rows, None for a file without row.

    Returns:
        Row by key, without the keys whose row is None.
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
    """Read the stored rows; none if the file is missing, damaged or has rows of another width.

    The archive holds a checksum of each array. Its readers raise errors of many kinds for damaged files.
    """
    if not store.is_file():
        return {}
    try:
        with store.open("rb") as file, np.load(file) as content:
            rows = content["rows"]
            if rows.dtype != np.int64 or rows.shape[1:] != (width,):
                return {}
            return dict(zip((str(key) for key in content["keys"]), rows, strict=True))
    except Exception as error:
        warnings.warn(f"{store} is damaged ({type(error).__name__}) and is made again.", stacklevel=2)
        return {}
