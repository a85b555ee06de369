"""Format tables: consoles, numbers and CSV text."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

_FILE_WIDTH = 120  # characters; without a terminal, rich assumes 80 and would break wide tables


def table_console() -> Console:
    """Return a console of the terminal's width, or of 120 characters if the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as CSV with Unix line ends."""
    rows = list(rows)
    text = _written(rows, csv.QUOTE_MINIMAL)
    # csv leaves a lone carriage return unquoted, which a reader takes for the end of the row.
    return _written(rows, csv.QUOTE_ALL) if "\r" in text else text


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
    """Read a CSV file as rows of cells, including the header."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header as one dictionary per row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def read_csv_text(text: str) -> list[dict[str, str]]:
    """Read CSV text with a header as one dictionary per row."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def or_null(value: float) -> float | None:
    """Round to six decimals for JSON, with None for nan and infinity, which JSON lacks."""
    return round(float(value), 6) if math.isfinite(value) else None


def shown(value: float | None, *, missing: str = "absent") -> str:
    """Format a fraction with three decimals, or return `missing` for None and nan."""
    return missing if value is None or math.isnan(value) else f"{value:.3f}"
