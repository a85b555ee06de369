"""Check and draw the segmentations of COCO: polygons, RLE and compressed RLE.

pycocotools trusts its input: runs that do not fill the image leave memory unwritten, and coordinates that are far off
or not finite fill the memory. So nothing reaches it that was not checked here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle_tools

Rle = dict[str, Any]
Size = tuple[int, int]  # (height, width) in pixels
_FAR = 100  # times the image's longer side: coordinates beyond are no clipped objects of a larger image
_NUMBERS = {int, float}  # bool is no coordinate


class Extent(NamedTuple):
    """Hold the smallest and the largest coordinate of a segmentation, in pixels."""

    low: float
    high: float

    @property
    def is_normalised(self) -> bool:
        """Check whether all coordinates lie between 0 and 1, as fractions of the image's size do."""
        return self.low >= 0 and self.high <= 1


def segmentation_fault(segmentation: Any, size: Size) -> str | None:
    """Describe the fault of a segmentation, or return None if it is valid.

    Args:
        segmentation: Polygons or RLE as in a JSON file, of any type.
        size: (height, width) of its image in pixels.
    """
    if isinstance(segmentation, Mapping):
        return _rle_fault(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return "no segmentation (a box alone cannot train segmentation)"
    for polygon in segmentation:
        if fault := _polygon_fault(polygon, size):
            return fault
    return None


def extent(segmentation: Any) -> Extent | None:
    """Return the smallest and the largest coordinate of valid polygons; None for an RLE."""
    if isinstance(segmentation, Mapping):
        return None
    return Extent(min(map(min, segmentation)), max(map(max, segmentation)))


def points(segmentation: Any) -> npt.NDArray[np.float64]:
    """Return the (P, 2) points x, y of valid polygons in pixels; none for an RLE."""
    if isinstance(segmentation, Mapping):
        return np.zeros((0, 2))
    return np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])


def box_polygons(bbox: Any, size: Size) -> list[list[float]] | None:
    """Convert a COCO box [x, y, width, height] to one polygon; None if it is no box that meets the image.

    Args:
        bbox: The box as in a JSON file, of any type.
        size: (height, width) of its image in pixels.
    """
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return None
    (x, y, width, height), (rows, columns) = bbox, size
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, columns), min(y + height, rows)
    if not (left < right and top < bottom):
        return None
    return [[left, top, right, top, right, bottom, left, bottom]]


def to_rle(segmentation: Any, size: Size) -> Rle:
    """Convert a valid segmentation to compressed RLE for an image of (height, width) pixels."""
    height, width = size
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            runs = {"size": [height, width], "counts": [int(run) for run in segmentation["counts"]]}
            return dict(rle_tools.frPyObjects(runs, height, width))
        return {"size": [height, width], "counts": str(segmentation["counts"]).encode()}
    return dict(rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width)))


def area(rle: Rle) -> int:
    """Count the pixels of an RLE."""
    return int(rle_tools.area(rle))


def union_area(rles: Sequence[Rle]) -> int:
    """Count the pixels that any of the RLEs covers."""
    return area(rle_tools.merge(list(rles))) if rles else 0


def decode(rle: Rle) -> npt.NDArray[np.bool_]:
    """Draw an RLE: (H, W) bool."""
    return np.asarray(rle_tools.decode(rle), dtype=bool)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _polygon_fault(polygon: Any, size: Size) -> str | None:
    """Describe the fault of one polygon [x1, y1, x2, y2, ...], or return None if it is valid."""
    if not isinstance(polygon, list):
        return "a segmentation that is neither polygons nor RLE"
    if len(polygon) % 2:
        return f"a polygon with an odd number of coordinates ({len(polygon)})"
    if len(polygon) < 6:
        return f"a polygon with {len(polygon) // 2} points (at least 3 are needed)"
    if wrong := [value for value in polygon if type(value) not in _NUMBERS]:
        return f"a polygon with the coordinate {wrong[0]!r} ({type(wrong[0]).__name__}), which is not a number"
    limit = _FAR * max(size)
    if not (-limit <= min(polygon) and max(polygon) <= limit and not math.isnan(sum(polygon))):
        worst = next(value for value in polygon if not -limit <= value <= limit)
        if isinstance(worst, float) and not math.isfinite(worst):
            return f"a polygon with a coordinate that is not finite ({worst})"
        height, width = size
        return f"a polygon with the coordinate {str(worst)[:20]}, far outside an image of {height}x{width}"
    return None


def _rle_fault(rle: Mapping[str, Any], size: Size) -> str | None:
    """Describe the fault of an RLE, or return None if it is valid."""
    if "counts" not in rle or "size" not in rle:
        return f"an RLE without counts or size (it has {sorted(map(str, rle))})"
    if list(_whole(rle["size"])) != list(size):
        return f"an RLE for an image of {rle['size']} (height, width), but the image is {list(size)}"
    counts = rle["counts"]
    if isinstance(counts, str):
        runs = _decoded_runs(counts)
        if runs is None:
            return "an RLE whose counts are not the text of a compressed RLE"
    elif isinstance(counts, list) and all(_is_number(run) and run == int(run) for run in counts):
        runs = np.array([min(max(int(run), -1), 1 << 60) for run in counts], dtype=np.int64)
    else:
        return "an RLE whose counts are neither whole numbers nor text"
    if (runs < 0).any():
        return f"an RLE with a negative run (run {int(np.argmax(runs < 0))} of {len(runs)})"
    total = sum(map(int, runs))
    if total != size[0] * size[1]:
        return f"an RLE whose runs cover {total} pixels, but the image has {size[0]}x{size[1]} = {size[0] * size[1]}"
    return None


def _whole(values: Any) -> list[Any]:
    """Return a list with its whole floats as integers; an empty list for anything else."""
    if not isinstance(values, (list, tuple)):
        return []
    return [int(value) if _is_number(value) and value == int(value) else value for value in values]


def _decoded_runs(text: str) -> npt.NDArray[np.int64] | None:
    """Decode the run lengths of a compressed RLE; None if the text is not one.

    Each character holds 5 bits of a number, lowest first, and a sixth that says whether more follow; the highest bit of
    the last one is the sign. From the fourth number on, each is the difference to the run two before it.
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if len(codes) == 0 or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        return None
    is_last = (codes & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    lengths = np.diff(np.append(starts, len(codes)))
    if lengths.max() > 7:  # pycocotools decodes into 32 bits
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= ((codes[is_last] & 16) > 0).astype(np.int64) << (5 * lengths)
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs
