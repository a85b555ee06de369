"""Decode the masks in the CSV files of competitions, such as `deeplab predict --csv` writes."""

import csv
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deeplab_lightning.data.classes import IGNORE_INDEX, MAX_CLASSES
from deeplab_lightning.errors import DataError
from deeplab_lightning.tables import read_lines_of_rows

Mask = npt.NDArray[np.uint8]
Size = tuple[int, int]
_RUN_COLUMNS = {"encodedpixels", "rle", "rlemask", "maskrle"}  # in lower case, without blanks and separators
_RUNS_HINT = "; if these are runs, call the column EncodedPixels"
_NO_RUNS = {"", "-1"}  # an image or a class without pixels


class DecodedMask(NamedTuple):
    """Hold the mask of an image.

    Attributes:
        line: Number of the line of the file that it comes from, the first one if there are several.
        name: Key of the image.
        mask: (h, w) uint8 class ids; 255 is void.
    """

    line: int
    name: str
    mask: Mask


class _Row(NamedTuple):
    """Hold a row of the file: its line, the image's key, the class id of runs, and ids or runs as text."""

    line: int
    name: str
    class_id: int
    text: str


def decode_csv(path: Path, *, size: Size | None, size_of: Callable[[int, str], Size | None]) -> Iterator[DecodedMask]:
    """Decode the masks of a CSV file, image by image.

    With two columns a row holds an image and the class ids of its pixels, row by row. With three, or where the second
    one is called `EncodedPixels`, `rle` or `rle_mask`, it holds an image, a class id (1 without that column) and the
    runs of its pixels as Kaggle counts them: pairs of first pixel, from 1, and length, where pixels are numbered column
    by column. Pixels outside of all runs are of class 0, or void if the file has runs of class 0.

    Args:
        path: The file, with a header of any names.
        size: Height and width of the masks; None for a square of class ids, and for the image's own with runs.
        size_of: Returns the size of an image by line and key; None if it is not known.

    Raises:
        DataError: If the header is missing or a row cannot be decoded; the message names its line.
    """
    with _long_cells():
        rows = read_lines_of_rows(path)
        _, header = next(rows, (1, []))
        has_runs = len(header) == 3 or (len(header) == 2 and re.sub(r"[\s_-]", "", header[1].lower()) in _RUN_COLUMNS)
        if len(header) != 2 and not has_runs:
            raise DataError(
                f"{path}, line 1: needs a header of two columns (image_id, PredictionString) or three (ImageId, "
                f"ClassId, EncodedPixels), got {', '.join(header)[:100] or 'none'}."
            )
        if _is_mask(header):
            raise DataError(
                f"{path}, line 1: holds the mask of {header[0].strip()[:40]}, and the header is missing. Write a "
                "first line: image_id,PredictionString for class ids, ImageId,EncodedPixels or "
                "ImageId,ClassId,EncodedPixels for runs."
            )
        entries = (_row(path, line, cells, len(header)) for line, cells in rows if cells)
        yield from (_masks_of_runs if has_runs else _masks_of_ids)(path, entries, size, size_of)


def _is_mask(header: Sequence[str]) -> bool:
    """Check whether the last cell of the first line holds a mask, also an empty one, instead of a name or a number."""
    words = header[-1].split()
    return not words or (len(words) > 1 and all(re.fullmatch(r"[+-]?\d+", word) for word in words))


def _row(path: Path, line: int, cells: list[str], num_columns: int) -> _Row:
    if len(cells) != num_columns:
        raise DataError(f"{path}, line {line}: has {len(cells)} columns, and the header {num_columns}.")
    name, text = cells[0].strip(), cells[-1].strip()
    if not name:
        raise DataError(f"{path}, line {line}: names no image.")
    class_id = _integers(path, line, cells[1] if num_columns == 3 else "1", "class id")
    if len(class_id) != 1 or not 0 <= class_id[0] < MAX_CLASSES:
        raise DataError(f"{path}, line {line}: the class id must be in [0, {MAX_CLASSES}), got {cells[1][:40]!r}.")
    return _Row(line, name, int(class_id[0]), text)


def _masks_of_ids(
    path: Path, rows: Iterator[_Row], size: Size | None, size_of: Callable[[int, str], Size | None]
) -> Iterator[DecodedMask]:
    first: dict[str, int] = {}
    for row in rows:
        if row.name in first:
            raise DataError(f"{path}, line {row.line}: {row.name} has a mask already, on line {first[row.name]}.")
        first[row.name] = row.line
        ids = _integers(path, row.line, row.text, "ids")
        side = math.isqrt(len(ids))
        height, width = size or (side, side)
        if not len(ids) or height * width != len(ids):
            wanted = f"{height} x {width} pixels need {height * width}" if size else "no square; give --size"
            wanted += _RUNS_HINT if len(ids) % 2 == 0 else ""
            raise DataError(f"{path}, line {row.line}: {row.name} has {len(ids)} ids, and {wanted}.")
        wrong = ids[((ids < 0) | (ids >= MAX_CLASSES)) & (ids != IGNORE_INDEX)]
        if len(wrong):
            raise DataError(
                f"{path}, line {row.line}: ids must be in [0, {MAX_CLASSES}), or {IGNORE_INDEX} for void, got "
                f"{wrong[0]}{_RUNS_HINT if len(ids) % 2 == 0 else ''}."
            )
        yield DecodedMask(row.line, row.name, ids.astype(np.uint8).reshape(height, width))


def _masks_of_runs(
    path: Path, rows: Iterator[_Row], size: Size | None, size_of: Callable[[int, str], Size | None]
) -> Iterator[DecodedMask]:
    of_image: dict[str, list[_Row]] = {}
    for row in rows:
        of_image.setdefault(row.name, []).append(row)
    has_zero = any(row.class_id == 0 for own in of_image.values() for row in own)
    for name, own in of_image.items():
        shape = size or size_of(own[0].line, name)
        if shape is None:
            raise DataError(f"{path}, line {own[0].line}: the size of {name} is not known; give --size or --images.")
        mask = np.full(shape[0] * shape[1], IGNORE_INDEX if has_zero else 0, dtype=np.uint8)
        is_labelled = np.zeros(len(mask), dtype=bool)
        for row in own:
            for start, stop in _runs(path, row, shape):
                if is_labelled[start:stop].any():
                    raise DataError(f"{path}, line {row.line}: pixels of {name} have another class or run already.")
                mask[start:stop], is_labelled[start:stop] = row.class_id, True
        yield DecodedMask(own[0].line, name, np.ascontiguousarray(mask.reshape(shape, order="F")))


def _runs(path: Path, row: _Row, shape: Size) -> list[tuple[int, int]]:
    """Return the first pixel of each run and the one after its last, from 0."""
    values = _integers(path, row.line, "" if row.text in _NO_RUNS else row.text, "runs")
    if len(values) % 2:
        raise DataError(
            f"{path}, line {row.line}: runs are pairs of first pixel and length, got {len(values)} numbers."
        )
    starts, lengths = values[::2] - 1, values[1::2]
    count = shape[0] * shape[1]
    is_wrong = (starts < 0) | (starts >= count) | (lengths < 1) | (lengths > count - starts)
    if is_wrong.any():
        at = int(is_wrong.argmax())
        raise DataError(
            f"{path}, line {row.line}: the run {values[2 * at]} {values[2 * at + 1]} leaves the "
            f"{shape[0]} x {shape[1]} pixels of {row.name}."
        )
    return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


def _integers(path: Path, line: int, text: str, kind: str) -> npt.NDArray[np.int64]:
    words = text.split()
    try:
        return np.array(words, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        wrong = next((word for word in words if not word.lstrip("-").isdecimal() or len(word) > 18), "")
        raise DataError(
            f"{path}, line {line}: {kind} must be integers with blanks between, got {wrong[:40]!r}."
        ) from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells be as long as the ids of an image; Python's reader refuses more than 131072 characters."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
