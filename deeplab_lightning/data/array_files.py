"""Read images that are stored as arrays: `.npy` files, and TIFF files of any number of bands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError

ARRAY_SUFFIX = ".npy"
TIFF_SUFFIXES = (".tif", ".tiff")


def read_array(path: Path) -> npt.NDArray[Any]:
    """Read the array of a `.npy` or TIFF file, as it is stored.

    Raises:
        ValueError: If it cannot be read.
        RuntimeError: If it is a TIFF, and tifffile is not installed.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        return np.array(_open_npy(path))
    with _naming(path), _tifffile().TiffFile(path) as file:
        pages = _like_pages(file)
        return np.stack([page.asarray() for page in pages]) if len(pages) > 1 else np.asarray(file.asarray())


def array_header(path: Path) -> tuple[tuple[int, ...], int]:
    """Read the shape of the array of a `.npy` or TIFF file, and its EXIF orientation: 1 is upright, as `.npy` is.

    Raises:
        ValueError: If it cannot be read.
        RuntimeError: If it is a TIFF, and tifffile is not installed.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        return _open_npy(path).shape, 1
    with _naming(path), _tifffile().TiffFile(path) as file:
        series = file.series[0]
        tag = series.keyframe.tags.get("Orientation")
        orientation = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
        number = len(_like_pages(file))
        return (number, *series.shape) if number > 1 else tuple(series.shape), orientation


def tiff_nodata(path: Path) -> float | None:
    """Read the value that a TIFF file of GDAL names for pixels that were not measured; None if it names none.

    Raises:
        ValueError: If the file cannot be read.
        RuntimeError: If tifffile is not installed.
    """
    with _naming(path), _tifffile().TiffFile(path) as file:
        tag = file.pages[0].tags.get("GDAL_NODATA")
    try:
        return None if tag is None else float(str(tag.value).strip(" \0"))
    except ValueError:
        return None


def _like_pages(file: Any) -> Sequence[Any]:
    """Return the series of a TIFF file that are bands, each written by itself: all of one height, width and type."""
    kinds = {(tuple(series.shape), str(series.dtype)) for series in file.series}
    return file.series if len(kinds) == 1 and len(file.series[0].shape) == 2 else file.series[:1]


def turned(array: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn (H, W, ...) pixels upright.

    Args:
        array: The pixels as they are stored.
        orientation: Their EXIF orientation, 1 to 8.
    """
    if orientation >= 5:  # rows are columns
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in {3, 4, 7, 8} else 1)
    columns = slice(None, None, -1 if orientation in {2, 3, 6, 7} else 1)
    return array[rows, columns]


def _open_npy(path: Path) -> npt.NDArray[Any]:
    """Map the array of a `.npy` file into memory."""
    with _naming(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: is an archive of arrays; save each array as a .npy file")
    return array


def _tifffile() -> Any:
    """Import tifffile.

    Raises:
        RuntimeError: If it is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UnavailableError(
            "TIFF files of other than RGB images of 8 bits need tifffile: pip install 'deeplab_lightning[multiband]'"
        ) from error
    return tifffile


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in all errors of its reader; tifffile and NumPy raise many kinds for damaged files."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such image") from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be decoded ({reason})") from error
