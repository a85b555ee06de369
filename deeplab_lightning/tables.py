"""Format tables: consoles, numbers and CSV text."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from deeplab_lightning.errors import DataError

_FORMULA = re.compile("'*[=+@\t\r-]")  # what spreadsheets take for a formula, and the same with our mark before it
_MARK = "'"  # which spreadsheets hide
_FILE_WIDTH = 120  # characters; without a terminal, rich assumes 80 and would break wide tables


def table_console() -> Console:
    """Return a console of the terminal's width, or of 120 characters if the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as CSV with Unix line ends.

    Texts that a spreadsheet would run as a formula, such as the name `=1+1` of a class, get an apostrophe in front,
    which `read_rows` and `read_csv` take away again.
    """
    rows = [list(map(_harmless, row)) for row in rows]
    text = _written(rows, csv.QUOTE_MINIMAL)
    # csv leaves a lone carriage return unquoted, which a reader takes for the end of the row.
    return _written(rows, csv.QUOTE_ALL) if "\r" in text else text


def _harmless(cell: Any) -> Any:
    """Mark a text that looks like a formula; numbers stay."""
    if not (isinstance(cell, str) and _FORMULA.match(cell)):
        return cell
    try:
        float(cell)
    except ValueError:
        return _MARK + cell
    return cell


def _unmarked(cell: Any) -> Any:
    """Take the mark of a text that looks like a formula away; what a row has too many or too few stays."""
    return cell[1:] if isinstance(cell, str) and cell.startswith(_MARK) and _FORMULA.match(cell) else cell


def _written(rows: Sequence[Sequence[Any]], quoting: Literal[0, 1]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


def csv_text_of_dicts(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Format dictionaries as CSV with a header.

    Args:
        rows: One dictionary per row; a missing key becomes an empty cell.
        columns: Keys of the header; all keys in order of first appearance if None.
    """
    header = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else list(columns)
    return csv_text([header, *([row.get(key, "") for key in header] for row in rows)])


def read_rows(path: Path) -> list[list[str]]:
    """Read a CSV file as rows of cells, including the header.

    Raises:
        DataError: If it is not CSV in UTF-8.
    """
    with _naming_damage(path), path.open(newline="", encoding="utf-8-sig") as file:
        return [list(map(_unmarked, row)) for row in csv.reader(file)]


def read_lines_of_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file row by row: the number of the line that each ends at, from 1, and its cells.

    Raises:
        DataError: If it is not CSV in UTF-8.
    """
    with _naming_damage(path), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for row in reader:
            yield reader.line_num, list(map(_unmarked, row))


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV file with a header as one dictionary per row.

    Args:
        path: The file.
        columns: Columns that every row must have.

    Raises:
        DataError: If it is not CSV in UTF-8, or a row lacks such a column.
    """
    with _naming_damage(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = _dictionaries(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        if lacking := [column for column in columns if row.get(column) is None]:
            raise DataError(f"{path}: is damaged: row {number} lacks {', '.join(lacking)}.")
    return rows


def read_csv_text(text: str) -> list[dict[str, str]]:
    """Read CSV text with a header as one dictionary per row."""
    return _dictionaries(csv.DictReader(io.StringIO(text, newline="")))


def _dictionaries(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: _unmarked(value) for key, value in row.items()} for row in rows]


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Report what cannot be CSV with the file.

    Raises:
        DataError: If it is not CSV in UTF-8.
    """
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is damaged, or not CSV in UTF-8 ({error}).") from error


def or_null(value: float) -> float | None:
    """Round to six decimals for JSON, with None for nan and infinity, which JSON lacks."""
    return round(float(value), 6) if math.isfinite(value) else None


def shown(value: float | None, *, missing: str = "absent") -> str:
    """Format a fraction with three decimals, or return `missing` for None and nan."""
    return missing if value is None or math.isnan(value) else f"{value:.3f}"
