"""Reading pictures and masks from files."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width


def read_image(path: Path) -> Tensor:
    """A picture as (3, H, W) uint8 RGB, turned upright by its EXIF tag.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, or has more than 8 bits a channel.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with Image.open(path) as file:
            if file.mode.startswith("I") or file.mode == "F":
                raise ValueError(f"{path}: has more than 8 bits a channel; convert it to 8 bits")
            pixels = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be decoded ({_first_line(error)})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of an upright picture, from the file's header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the header is not that of a picture.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            # Pillow would decode a whole PNG in search of a tag that stands after the pixels.
            has_tags = file.format != "PNG" or "exif" in file.info
            orientation = file.getexif().get(_EXIF_ORIENTATION, 1) if has_tags else 1
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be decoded ({_first_line(error)})") from error
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def read_mask(path: Path) -> npt.NDArray[Any]:
    """An index or palette mask as (H, W) raw ids, uint8 or uint16. A palette is never expanded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded or is a colour picture.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask")
    try:
        with Image.open(path) as file:
            file.load()
            mode, array = file.mode, np.asarray(file)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be decoded ({_first_line(error)})") from error
    if mode == "1":
        return array.astype(np.uint8)
    if mode in {"P", "L"}:
        return array
    if mode.startswith("I"):
        return array.astype(np.uint16)
    raise ValueError(f"{path}: is a colour picture ({mode}); masks are index or palette PNG files of one channel")


def _first_line(error: BaseException) -> str:
    """The decoder's own words."""
    return str(error).splitlines()[0]
