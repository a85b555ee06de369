"""Read masks from files."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from deeplab_lightning.data.array_files import ARRAY_SUFFIX, read_array
from deeplab_lightning.data.images import UNREADABLE, decoding_error, exif_orientation
from deeplab_lightning.errors import MissingFileError, UserError

_WEBP_HEAD = 4096  # bytes


class RawMask(NamedTuple):
    """Hold the content of a mask file.

    Attributes:
        ids: (H, W) raw ids, of an integer type, upright; of a colour file the colours as R * 65536 + G * 256 + B.
        palette: The colours R, G, B of the raw ids 0, 1, ... in a palette file, else None.
        is_turned: Whether its EXIF tag asked for a rotation or reflection.
        has_colors: Whether the file has three channels.
    """

    ids: npt.NDArray[Any]
    palette: bytes | None
    is_turned: bool
    has_colors: bool = False


def read_mask(path: Path) -> npt.NDArray[Any]:
    """Read the raw ids of an index or palette mask, (H, W) of an integer type, see `read_raw_mask`.

    Raises:
        ValueError: Also if it is a colour image.
    """
    raw = read_raw_mask(path)
    if raw.has_colors:
        raise UserError(f"{path}: is a colour image; masks must be index or palette PNG files with one channel")
    return raw.ids


def read_raw_mask(path: Path) -> RawMask:
    """Read an index, palette or colour mask without applying the palette, turned upright by its EXIF tag.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be decoded, was compressed with loss, is partly transparent, or holds fractions.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such mask")
    if path.suffix.lower() == ARRAY_SUFFIX:
        return _array_mask(path)
    try:
        # From memory: Pillow maps plain TIFF files, and mixes up the rows of those that are turned.
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            if _is_lossy(path, file):
                raise UserError(
                    f"{path}: is a mask in {file.format} with lossy compression, which changes labels at every edge; "
                    "export the masks again as PNG"
                )
            file.load()
            is_turned = exif_orientation(file) != 1
            upright = ImageOps.exif_transpose(file) if is_turned else file
            mode, array = upright.mode, np.asarray(upright)
            palette = file.getpalette("RGB") if mode == "P" else None
    except UNREADABLE as error:
        raise decoding_error(path, error) from error
    if mode == "1":
        array = array.astype(np.uint8)
    elif mode == "F":
        array = _whole_numbers(path, array)
    elif mode not in {"P", "L"} and not mode.startswith("I"):
        return RawMask(_packed_colors(path, upright), None, is_turned, has_colors=True)
    return RawMask(array, None if palette is None else bytes(palette), is_turned)


def _array_mask(path: Path) -> RawMask:
    """Read a mask from a `.npy` file.

    Raises:
        ValueError: If it does not hold one whole number per pixel.
    """
    array = read_array(path)
    if array.ndim != 2 or array.dtype.kind not in "buif" or not array.size:
        raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}, but masks are (H, W) integers")
    if array.dtype.kind == "f":
        array = _whole_numbers(path, array)
    return RawMask(array.astype(np.uint8) if array.dtype == bool else array, None, is_turned=False)


def _packed_colors(path: Path, file: Image.Image) -> npt.NDArray[np.int32]:
    """Return the colours of a mask as one number per pixel, (H, W).

    Raises:
        ValueError: If it is partly transparent, so that its colours are mixed.
    """
    if file.mode in {"RGBA", "LA", "PA"}:
        alpha = np.asarray(file.getchannel("A"))
        if ((alpha > 0) & (alpha < 255)).any():
            raise UserError(f"{path}: is partly transparent ({file.mode}), so its colours name no classes")
    colors = np.asarray(file.convert("RGB")).astype(np.int32)  # (H, W, 3)
    packed: npt.NDArray[np.int32] = (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]
    return packed


def _whole_numbers(path: Path, array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Convert a float mask to integers.

    Raises:
        ValueError: If a value is not a whole number.
    """
    values = array.astype(np.float64)
    is_whole = np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**53)
    if not is_whole.all():
        raise UserError(f"{path}: holds the value {values[~is_whole][0]:g}, but labels must be whole numbers")
    return values.astype(np.int64)


def _is_lossy(path: Path, file: Image.Image) -> bool:
    """Check whether the pixels of an opened file were changed by compression."""
    if file.format == "WEBP":
        with path.open("rb") as content:
            return b"VP8 " in content.read(_WEBP_HEAD)  # lossless pixels are in a chunk named VP8L
    return file.format in {"JPEG", "MPO", "JPEG2000"} or file.info.get("compression") in {"jpeg", "tiff_jpeg"}
