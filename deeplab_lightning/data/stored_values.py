"""Look at the values in image files as they are stored, before an `ImageFormat` turns them into pixels."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deeplab_lightning.data.array_files import TIFF_SUFFIXES, read_array, tiff_nodata
from deeplab_lightning.data.image_format import split_shape
from deeplab_lightning.data.images import ImageFile, open_image

# Values that programs write where nothing was measured, if they are the lowest of a file.
_SENTINELS = (-9999.0, -99999.0, -32767.0, -32768.0, float(np.finfo(np.float32).min), float(np.finfo(np.float64).min))


class StoredImage(NamedTuple):
    """Hold the values of an image file.

    Attributes:
        values: (H, W, C) numbers. Images of 8 bits that any program shows are RGB.
        is_deep: Whether they have more than 8 bits.
        nodata: The value of pixels that were not measured, if it is among the values: NaN, the one that the file names,
            or the lowest one where that is a usual one; None if all were measured.
    """

    values: npt.NDArray[Any]
    is_deep: bool
    nodata: float | None

    @property
    def is_measured(self) -> npt.NDArray[np.bool_]:
        """Return which values were measured, (H, W, C)."""
        is_number = ~np.isnan(self.values)
        return is_number if self.nodata is None else is_number & (self.values != self.nodata)


def read_stored(path: Path) -> StoredImage:
    """Read the values of an image file.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be decoded.
    """
    source = open_image(path)
    if isinstance(source, ImageFile) and not source.is_deep:
        return StoredImage(source.pixels().permute(1, 2, 0).numpy(), is_deep=False, nodata=None)
    array = source.deep_values() if isinstance(source, ImageFile) else read_array(path)
    size, channels = split_shape(array.shape, path)
    if array.ndim == 3 and array.shape[:2] != size:  # (C, H, W)
        array = np.moveaxis(array, 0, -1)
    values = array.reshape(*size, channels)
    return StoredImage(values, values.dtype not in (np.uint8, np.bool_), _nodata(path, values))


def _nodata(path: Path, values: npt.NDArray[Any]) -> float | None:
    """Return the value of pixels that were not measured, if it is among the values."""
    named = tiff_nodata(path) if path.suffix.lower() in TIFF_SUFFIXES else None
    if named is not None and (values == named).any():
        return named
    is_nan = np.isnan(values)
    if not is_nan.all() and (lowest := float(np.nanmin(values))) in _SENTINELS:
        return lowest
    return float("nan") if is_nan.any() else None
