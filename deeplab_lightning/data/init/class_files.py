"""Read the names, ids and colours of classes from text and CSV files, whatever tool wrote them."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.init.any_text import read_any_text

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
        The classes by the file's name, which is followed by the encoding if that is not UTF-8; none of a file that
        looks like one by its name and is not text.
    """
    found: dict[str, list[NamedClass]] = {}
    for name in sorted(index.names, key=lambda name: (name.count("/"), name)):
        path = PurePosixPath(name)
        is_named = _FILE_NAME.search(path.stem.lower()) and path.suffix.lower() in _SUFFIXES
        if is_named and (index.folder / name).stat().st_size <= _MAX_BYTES:
            text = read_any_text(index.folder / name)
            classes = [] if text is None else _classes(text.lines)
            title = name if text is None or text.encoding is None else f"{name} (read as {text.encoding})"
            if text is None or (classes and classes not in found.values()):
                found[title] = classes
    return found


def _classes(lines: Sequence[str]) -> list[NamedClass]:
    """Read the lines of a class file."""
    texts = [line.strip() for line in lines]
    rows = [_cells(text) for text in texts if text and not text.startswith("#")]
    has_numbers = [any(cell.isdecimal() for cell in cells) for cells in rows]
    if sum(has_numbers) * 2 > len(rows):  # a line without is the header
        rows = [cells for cells, has in zip(rows, has_numbers, strict=True) if has]
    classes = [_named_class(cells) for cells in rows]
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
