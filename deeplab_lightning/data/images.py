"""Read images and masks from files."""

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor

from deeplab_lightning.errors import MissingFileError, UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width


class ImageSource(ABC):
    """Decode an image on demand, at full or at reduced size.

    Attributes:
        size: (height, width) in pixels, upright.
    """

    size: tuple[int, int]

    @abstractmethod
    def pixels(self, reduction: int = 1) -> Tensor:
        """Decode the pixels.

        Args:
            reduction: 1 for the full size, or any value up to the one that `reduction` returned.

        Returns:
            (3, ceil(H / reduction), ceil(W / reduction)) uint8 RGB, in any memory order. It may share memory
            with the source, so do not write to it.
        """

    def reduction(self, scale: float) -> int:
        """Return the largest reduction that still holds enough pixels for an image resized by `scale`.

        Args:
            scale: Factor by which the full image is resized.

        Returns:
            1, 2, 4 or 8: how many times smaller than the full size the image may be decoded.
        """
        return 1


class DecodedImage(ImageSource):
    """Wrap an image that is already decoded.

    Args:
        image: (3, H, W) uint8 RGB.
    """

    def __init__(self, image: Tensor) -> None:
        self._image = image.as_subclass(Tensor)
        self.size = (image.shape[-2], image.shape[-1])

    def pixels(self, reduction: int = 1) -> Tensor:
        """Return the image itself, (3, H, W) uint8 RGB."""
        return self._image


class ImageFile(ImageSource):
    """Read an image file and turn it upright by its EXIF tag. The header is read at once, the pixels later.

    A JPEG can be decoded 2, 4 or 8 times smaller for a fraction of the work: the inverse transform of its
    blocks of 8x8 pixels is then computed at that size.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the header is not that of an image, or the image has more than 8 bits per channel;
            `pixels` raises it if the rest of the file cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise MissingFileError(f"{path}: no such image") from error
        size = _plain_jpeg_size(self._bytes)
        self._is_plain_jpeg = size is not None
        self.size = self._opened_size() if size is None else size

    def reduction(self, scale: float) -> int:
        """Return the largest reduction for `scale`: 1 unless the file is a plain JPEG, see `ImageSource`."""
        return next(r for r in (8, 4, 2, 1) if r == 1 or (self._is_plain_jpeg and scale * r <= 1))

    def pixels(self, reduction: int = 1) -> Tensor:
        """Decode the file to (3, ceil(H / reduction), ceil(W / reduction)) uint8 RGB, in any memory order."""
        try:
            if self._is_plain_jpeg:  # the same pixels as Pillow's, in two thirds of the time
                min_size = {"min_height": -(-self.size[0] // reduction), "min_width": -(-self.size[1] // reduction)}
                array = simplejpeg.decode_jpeg(self._bytes, "RGB", min_factor=reduction, **min_size)  # (H, W, 3)
            else:
                array = np.array(ImageOps.exif_transpose(self._file).convert("RGB"))  # (H, W, 3)
        except (OSError, SyntaxError, ValueError) as error:
            raise _decoding_error(self._path, error) from error
        return torch.from_numpy(array).permute(2, 0, 1)  # (3, H, W)

    def _opened_size(self) -> tuple[int, int]:
        """Open the file with Pillow and return its upright (height, width)."""
        try:
            self._file = Image.open(io.BytesIO(self._bytes))
            size = _upright_size(self._file)
        except (OSError, SyntaxError) as error:
            raise _decoding_error(self._path, error) from error
        if self._file.mode.startswith("I") or self._file.mode == "F":
            raise UserError(f"{self._path}: has more than 8 bits per channel; convert it to 8 bits")
        return size


def read_image(path: Path) -> Tensor:
    """Read an image as contiguous (3, H, W) uint8 RGB, turned upright by its EXIF tag.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be decoded, or has more than 8 bits per channel.
    """
    return planar(ImageFile(path).pixels())


def planar(pixels: Tensor) -> Tensor:
    """Make (3, H, W) uint8 pixels contiguous, without a copy if they are contiguous already.

    NumPy changes the memory order faster than torch.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))


def image_size(path: Path) -> tuple[int, int]:
    """Read the upright (height, width) of an image in pixels from the header of its file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the header is not that of an image.
    """
    try:
        with Image.open(path) as file:
            return _upright_size(file)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such image") from error
    except (OSError, SyntaxError) as error:
        raise _decoding_error(path, error) from error


def read_mask(path: Path) -> npt.NDArray[Any]:
    """Read an index or palette mask without applying the palette.

    Returns:
        (H, W) raw ids, uint8 or uint16.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be decoded or is a colour image.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such mask")
    try:
        with Image.open(path) as file:
            file.load()
            mode, array = file.mode, np.asarray(file)
    except (OSError, SyntaxError) as error:
        raise _decoding_error(path, error) from error
    if mode == "1":
        return array.astype(np.uint8)
    if mode in {"P", "L"}:
        return array
    if mode.startswith("I"):
        return array.astype(np.uint16)
    raise UserError(f"{path}: is a colour image ({mode}); masks must be index or palette PNG files with one channel")


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a colour JPEG without EXIF tag, or None for every other file.

    This takes a tenth of the time that Pillow needs to open the file.
    """
    if not data.startswith(b"\xff\xd8") or b"Exif\x00" in data:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # opening the file with Pillow gives the error message
        return None
    return (height, width) if colors == "YCbCr" else None


def _upright_size(file: Image.Image) -> tuple[int, int]:
    """Return (height, width) after the rotation that the EXIF tag asks for."""
    width, height = file.size
    # Pillow would decode a whole PNG to look for a tag after the pixels.
    has_tags = file.format != "PNG" or "exif" in file.info
    orientation = file.getexif().get(_EXIF_ORIENTATION, 1) if has_tags else 1
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def _decoding_error(path: Path, error: BaseException) -> UserError:
    """Build the error of a damaged file from the first line of the decoder's message."""
    return UserError(f"{path}: cannot be decoded ({str(error).splitlines()[0]})")
