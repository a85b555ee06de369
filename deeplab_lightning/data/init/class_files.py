"""Read the names, ids and colours of classes from text and CSV files, whatever tool wrote them."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.errors import UserError
from deeplab_lightning.files import read_lines

Color = tuple[int, int, int]
_FILE_NAME = re.compile(r"class|label|palette|colou?r|categor|names")
_SUFFIXES = (".txt", ".csv", ".tsv", ".names")
_MAX_BYTES = 100_000
_SEPARATORS = re.compile(r"[,;:\t]")
_VOID = re.compile(r"void|ignored?|unlabell?ed|unknown|dont ?care")


class NamedClass(NamedTuple):
    """Hold one line of a class file: the name, and the id and colour if the line says them."""

    name: str
    id: int | None
    color: Color | None

    @property
    def is_void(self) -> bool:
        """Check whether the name says that the pixels belong to no class."""
        return _VOID.fullmatch(re.sub("[^a-z ]", "", self.name.lower())) is not None


def class_files(index: FolderIndex) -> dict[str, list[NamedClass]]:
    """Read all files that name classes, of equal ones only the first.

    Args:
        index: The files of the folder.

    Returns:
        The classes by the file's name.
    """
    found: dict[str, list[NamedClass]] = {}
    for name in sorted(index.names, key=lambda name: (name.count("/"), name)):
        path = PurePosixPath(name)
        is_named = _FILE_NAME.search(path.stem.lower()) and path.suffix.lower() in _SUFFIXES
        if is_named and (index.folder / name).stat().st_size <= _MAX_BYTES:
            classes = _read(index.folder / name)
            if classes and classes not in found.values():
                found[name] = classes
    return found


def _read(path: Path) -> list[NamedClass]:
    """Read a class file; nothing if it is not text."""
    try:
        texts = [line.strip() for line in read_lines(path)]
    except UserError:
        return []
    lines = [_cells(text) for text in texts if text and not text.startswith("#")]
    has_numbers = [any(cell.isdecimal() for cell in cells) for cells in lines]
    if sum(has_numbers) * 2 > len(lines):  # a line without is the header
        lines = [cells for cells, has in zip(lines, has_numbers, strict=True) if has]
    classes = [_named_class(cells) for cells in lines]
    return [named for named in classes if named.name]


def _cells(line: str) -> list[str]:
    """Cut a line at its separators, or else at blanks where numbers stand before or behind a name."""
    if _SEPARATORS.search(line):
        cells = [cell.strip().strip("\"'") for cell in _SEPARATORS.split(line) if cell.strip()]
        return [part for cell in cells for part in (cell.split() if re.fullmatch(r"[\d\s]+", cell) else [cell])]
    before = re.match(r"(?:\d+\s+)*", line)
    end = before.end() if before else 0
    behind = re.search(r"(?:\s+\d+){3,4}$", line[end:])
    name = line[end : end + behind.start()] if behind else line[end:]
    return [*line[:end].split(), name.strip(), *(behind[0].split() if behind else [])]


def _named_class(cells: Sequence[str]) -> NamedClass:
    """Read a name with its numbers: an id, a colour, or both."""
    numbers = [int(cell) for cell in cells if cell.isdecimal()]
    words = [cell for cell in cells if not cell.isdecimal()]
    name = _plain(words[0]) if words else ""
    color = tuple(numbers[-3:]) if len(numbers) >= 3 else None
    id_ = numbers[0] if len(numbers) in {1, 4} else None
    return NamedClass(name, id_, color)  # type: ignore[arg-type]


def _plain(name: str) -> str:
    """Return a class name; labelme writes `_background_`."""
    return "background" if name.strip("_").lower() == "background" else name
