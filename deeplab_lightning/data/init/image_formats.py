"""Choose the `ImageFormat` of images that are not RGB of 8 bits, by what a part of them holds."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deeplab_lightning.data.image_format import PLAIN, ImageFormat, Range
from deeplab_lightning.data.init.yaml_text import commented, scalar
from deeplab_lightning.data.stored_values import read_stored
from deeplab_lightning.errors import DataError

_MAX_OPENED = 32  # images, evenly spaced
_MAX_VALUES = 50_000  # of a channel of an image
_PERCENTILES = (0.5, 99.5)  # of the values, so that a few bright or dark ones do not take most of the 256 steps
_ALIKE = 3.0  # times that the largest range of a channel may be as wide as the smallest one, to share one


class FoundFormat(NamedTuple):
    """Hold the format of images, and why it was chosen.

    Attributes:
        image_format: The format.
        lines: Its lines of YAML; none for RGB of 8 bits.
    """

    image_format: ImageFormat
    lines: list[str]


def find_format(paths: Sequence[Path]) -> FoundFormat:
    """Look at some images and choose the format that fits all of them.

    Args:
        paths: The image files.

    Raises:
        FileNotFoundError: If a file does not exist.
        DataError: If the images differ in the number of channels or in the kind of their values.
    """
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(_MAX_OPENED, len(paths))).astype(int)]
    seen = [(path, look) for path, look in zip(chosen, _looks(chosen), strict=True) if look is not None]
    if not seen:
        return FoundFormat(PLAIN, [])
    looks = [look for _, look in seen]
    first = looks[0]
    for path, look in seen:
        if (look.channels, look.is_deep) != (first.channels, first.is_deep):
            raise DataError(
                f"{seen[0][0]} has {first.text}, and {path} has {look.text}: the images of one data set need the same."
            )
    missing = _most_common([look.nodata for look in looks if look.nodata is not None])
    if not first.is_deep:
        if first.channels == PLAIN.channels and missing is None:
            return FoundFormat(PLAIN, [])
        lines = [*_head(first, looks), "    value_range: null # of 8 bits", *_nodata_lines(missing, looks)]
        return FoundFormat(ImageFormat(first.channels, nodata=missing), lines)
    ranges = [_range(np.concatenate([look.values[channel] for look in looks])) for channel in range(first.channels)]
    value_range = _shared(ranges)
    own = ImageFormat(first.channels, value_range, nodata=missing)
    return FoundFormat(own, [*_head(first, looks), *_range_lines(value_range, looks), *_nodata_lines(missing, looks)])


class _Look(NamedTuple):
    """Hold what one image says: measured values of each channel, and the share of those that were not measured."""

    channels: int
    dtype: np.dtype[Any]
    is_deep: bool
    values: list[npt.NDArray[Any]]
    nodata: float | None
    missing: float

    @property
    def text(self) -> str:
        return f"{self.channels} channel{'s' if self.channels > 1 else ''} of {self.dtype}"


def _looks(paths: Sequence[Path]) -> list[_Look | None]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(_look, paths))


def _look(path: Path) -> _Look | None:
    """Look at one image; None if it cannot be decoded, which the scan reports with all others of its kind."""
    try:
        image = read_stored(path)
    except (OSError, ValueError):
        return None
    channels, dtype = image.values.shape[2], image.values.dtype
    is_measured = image.is_measured
    kept = [_thinned(image.values[..., c][is_measured[..., c]]) for c in range(channels)]
    return _Look(channels, dtype, image.is_deep, kept, image.nodata, 1 - float(is_measured.mean()))


def _most_common(values: Sequence[float]) -> float | None:
    """Return the most common number; NaN only without another one, which it counts as, too."""
    numbers = [value for value in values if not math.isnan(value)]
    return Counter(numbers or values).most_common(1)[0][0] if values else None


def _thinned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[:: max(1, len(values) // _MAX_VALUES)].astype(np.float64)


def _range(values: npt.NDArray[Any]) -> Range:
    """Return the range of most values of a channel, with ends of two digits; from 0 on if they begin near it."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return (0.0, 1.0)
    low, high = np.percentile(finite, _PERCENTILES).tolist()
    if low == high:  # of few values that are not the most common one
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        high = low + max(abs(low), 1.0)
    exponent = math.floor(math.log10(high - low)) - 1
    if 0 <= low < (high - low) / 10:
        low = 0.0
    return _rounded(math.floor(low / 10**exponent), exponent), _rounded(math.ceil(high / 10**exponent), exponent)


def _rounded(number: int, exponent: int) -> float:
    return float(f"{number}e{exponent}")  # no product has more digits


def _shared(ranges: Sequence[Range]) -> Range | list[Range]:
    """Return one range for all channels if theirs are alike, else one for each."""
    widths = [high - low for low, high in ranges]
    joined = (min(low for low, _ in ranges), max(high for _, high in ranges))
    return joined if joined[1] - joined[0] <= _ALIKE * min(widths) else list(ranges)


def _head(first: _Look, looks: Sequence[_Look]) -> Iterator[str]:
    yield "  image_format:"
    yield from commented(f"    channels: {first.channels}", f"{first.text}, by {len(looks)} images")


def _range_lines(value_range: Range | list[Range], looks: Sequence[_Look]) -> Iterator[str]:
    """Yield the lines of the range, with what the values are."""
    values = np.concatenate([own for look in looks for own in look.values])
    finite = values[np.isfinite(values)]
    span = f"{finite.min():g} to {finite.max():g}" if len(finite) else "none"
    pairs = [list(pair) for pair in value_range] if isinstance(value_range, list) else list(value_range)
    share = _PERCENTILES[1] - _PERCENTILES[0]
    reason = f"becomes 0 to 255: {share:g}% of the values lie within (of all: {span})"
    yield from commented(f"    value_range: {scalar(pairs)}", reason)


def _nodata_lines(nodata: float | None, looks: Sequence[_Look]) -> Iterator[str]:
    """Yield the lines of the value without measurement, with its share."""
    if nodata is None:
        return
    number = sum(look.missing > 0 for look in looks)
    share = np.mean([look.missing for look in looks])
    reason = f"not measured: {share:.1%} of the values, in {number} of {len(looks)} images; check that this is meant"
    others = {look.nodata for look in looks if look.nodata is not None and not math.isnan(look.nodata)} - {nodata}
    if others:
        reason += f"; some have {', '.join(f'{value:g}' for value in sorted(others))}, which count as measured"
    yield from commented(f"    nodata: {scalar(nodata)}", reason)
