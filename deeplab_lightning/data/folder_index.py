"""List the files of a folder, and find the one that a wrong name means."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote


class FolderIndex:
    """List the files below a folder, without names that begin with a dot, in which systems keep notes of their own.

    Args:
        folder: The folder, which is read once.

    Attributes:
        folder: The folder.
        names: Sorted paths of the files, relative to the folder, with `/`.
        num_hidden: Number of files and folders that were left out because their names begin with a dot.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_hidden = folder, 0
        self.names = sorted(self._walk())
        self._known = set(self.names)

    def _walk(self) -> Iterator[str]:
        for place, folders, files in os.walk(self.folder):
            shown = [name for name in folders if not name.startswith(".")]
            seen = [name for name in files if not name.startswith(".")]
            self.num_hidden += len(folders) - len(shown) + len(files) - len(seen)
            folders[:] = shown
            below = Path(place).relative_to(self.folder)
            yield from ((below / name).as_posix() for name in seen)

    def find(self, name: str) -> str | None:
        """Return the file of a name, also if only the case of its suffix differs; None if there is none.

        Args:
            name: Path relative to the folder, with `/`.
        """
        return name if name in self._known else self._by_suffix.get(_with_lower_suffix(name))

    def hint(self, name: str) -> str:
        """Return a sentence that names the file that a wrong name probably means, or an empty string.

        A name with backslashes, URL escapes, a leading folder too many or too few, or another case is recognised.

        Args:
            name: The wrong name.
        """
        parts = PurePosixPath(unquote(name).replace("\\", "/").casefold()).parts
        for start in range(len(parts)):
            if found := self._by_folded.get("/".join(parts[start:])):
                return f"The folder {self.folder} holds {found}."
        if parts and (found := self._by_base.get(parts[-1])):
            return f"The folder {self.folder} holds {found}."
        return ""

    @cached_property
    def _by_suffix(self) -> dict[str, str]:
        return {_with_lower_suffix(name): name for name in self.names}

    @cached_property
    def _by_folded(self) -> dict[str, str]:
        return {name.casefold(): name for name in self.names}

    @cached_property
    def _by_base(self) -> dict[str, str]:
        return {name.casefold().rpartition("/")[2]: name for name in self.names}


def _with_lower_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"
