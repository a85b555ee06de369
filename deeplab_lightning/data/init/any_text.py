"""Read text files of any tool: in UTF-8, UTF-16 with a byte order mark, or the code page of Windows."""

import codecs
from pathlib import Path
from typing import NamedTuple

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_NAMES = {"utf-16": "UTF-16", "cp1252": "Windows-1252", "latin-1": "Latin-1"}


class AnyText(NamedTuple):
    """Hold the lines of a text file, and the name of its encoding if that is not UTF-8."""

    lines: list[str]
    encoding: str | None


def read_any_text(path: Path) -> AnyText | None:
    """Read a text file; None if it is not text.

    Only newlines end a line, as in `deeplab_lightning.files.read_lines`, or carriage returns where there is none.
    Without a byte order mark, what is not UTF-8 is taken for Windows-1252, of which Latin-1 is a part but for control
    characters.

    Args:
        path: The file.
    """
    content = path.read_bytes()
    marked = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    for encoding in [marked] if marked else ["utf-8", "cp1252", "latin-1"]:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return None if "\0" in text else AnyText(_lines(text), _NAMES.get(encoding))
    return None


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n" if "\n" in text else "\r")
