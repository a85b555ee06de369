"""Files that are written whole or not at all, and names that are not taken yet."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside `path`, then rename: a reader finds the old file or the new one, never a part.

    Args:
        path: The file; its folder is made if needed.
        write: Called with the open binary file.
    """
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


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def unused_path(path: Path) -> Path:
    """Return the path, or the first of -2, -3, ... that does not exist.

    The number goes before a file's suffix and after a folder's name.
    """
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{stem}-{number}{suffix}")
    return candidate
