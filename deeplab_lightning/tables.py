"""Tables for people and programs: consoles, number formats, CSV text."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

_FILE_WIDTH = 120  # characters; rich assumes 80 where there is no terminal, and would break tables


def table_console() -> Console:
    """Return a console as wide as the terminal, or wide enough for tables in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def csv_text_of_dicts(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Format dictionaries as CSV with a header.

    Args:
        rows: One dictionary per row; a missing key is an empty cell.
        columns: The header; the keys of all rows in order of first appearance if None.
    """
    header = list(dict.fromkeys(key for row in rows for key in row)) if columns is None else list(columns)
    return csv_text([header, *([row.get(key, "") for key in header] for row in rows)])


def read_rows(path: Path) -> list[list[str]]:
    """Read a CSV file as rows of cells, its header included."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header as one dictionary per row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def or_null(value: float) -> float | None:
    """Round to six decimals for JSON, which has no nan: None where the value is not finite."""
    return round(float(value), 6) if math.isfinite(value) else None


def shown(value: float | None, *, missing: str = "absent") -> str:
    """Format a fraction with three decimals; `missing` for None and nan."""
    return missing if value is None or math.isnan(value) else f"{value:.3f}"
