"""Read images and masks from files."""

import io
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from deeplab_lightning.data.array_files import ARRAY_SUFFIX, TIFF_SUFFIXES, array_header, read_array, turned
from deeplab_lightning.data.image_format import DEEP_MODES, PLAIN, ImageFormat, Pixels, split_shape
from deeplab_lightning.data.tiff_pages import is_multiband, stored_size
from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", *TIFF_SUFFIXES, ARRAY_SUFFIX)
MAX_PIXELS = 178_956_970
"""Largest number of pixels of an image or mask: Pillow refuses more, since a small file may fill the memory."""
LARGE_PIXELS = 4_000_000_000
"""Largest number of pixels of an image that is predicted in tiles; 12 GB in memory."""
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width
_WEBP_HEAD = 4096  # bytes
# What Pillow raises for damaged files: struct.error is a format that is cut off within a header.
UNREADABLE = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class ImageSource(ABC):
    """Decode an image on demand, at full or at reduced size.

    Attributes:
        size: (height, width) in pixels, upright.
        is_turned: Whether its EXIF tag asks for a rotation or reflection of the stored pixels.
    """

    size: tuple[int, int]
    is_turned: bool = False

    @abstractmethod
    def pixels(self, reduction: int = 1) -> Tensor:
        """Decode the pixels.

        Args:
            reduction: 1 for the full size, or any value up to the one that `reduction` returned.

        Returns:
            (C, ceil(H / reduction), ceil(W / reduction)) uint8, in any memory order. It may share memory with the
            source, so do not write to it.
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
        image: (C, H, W) uint8.
    """

    def __init__(self, image: Tensor) -> None:
        self._image = image.as_subclass(Tensor)
        self.size = (image.shape[-2], image.shape[-1])

    def pixels(self, reduction: int = 1) -> Tensor:
        """Return the image itself, (C, H, W) uint8."""
        return self._image


class ImageFile(ImageSource):
    """Read an image file and turn it upright by its EXIF tag. The header is read at once, the pixels later.

    A JPEG can be decoded 2, 4 or 8 times smaller for a fraction of the work: the inverse transform of its
    blocks of 8x8 pixels is then computed at that size.

    Args:
        path: The file.
        image_format: Channels and values of its pixels.
        max_pixels: Largest number of pixels that is read.

    Attributes:
        is_multiband: Whether it is a TIFF of which Pillow reads a part alone.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the header is not that of an image, or the image has more than 8 bits per channel or
            more than `max_pixels` pixels; `pixels` raises it if the rest of the file cannot be decoded.
    """

    is_multiband: bool = False

    def __init__(self, path: Path, image_format: ImageFormat = PLAIN, *, max_pixels: int = MAX_PIXELS) -> None:
        self._path, self._format = path, image_format
        try:
            self._bytes = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise MissingFileError(f"{path}: no such image") from error
        size = _plain_jpeg_size(self._bytes)
        self._is_plain_jpeg = size is not None and image_format.is_plain
        self.size = self._opened_size() if size is None else size
        if self.size[0] * self.size[1] > max_pixels:
            raise _size_error(path, self.size[0] * self.size[1])

    def reduction(self, scale: float) -> int:
        """Return the largest reduction for `scale`: 1 unless the file is a plain JPEG, see `ImageSource`."""
        return next(r for r in (8, 4, 2, 1) if r == 1 or (self._is_plain_jpeg and scale * r <= 1))

    @property
    def is_deep(self) -> bool:
        """Check whether it has more than 8 bits per channel."""
        return not self._is_plain_jpeg and (self._file.mode.startswith(DEEP_MODES) or _is_deep_color(self._file))

    def deep_values(self) -> npt.NDArray[Any]:
        """Decode an image of more than 8 bits to its values, (H, W) or (H, W, C), as they are stored.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        try:
            return self._deep_colors() if _is_deep_color(self._file) else np.asarray(self._file)
        except (*UNREADABLE, ValueError) as error:
            raise decoding_error(self._path, error) from error

    def pixels(self, reduction: int = 1) -> Tensor:
        """Decode the file to (C, ceil(H / reduction), ceil(W / reduction)) uint8, in any memory order."""
        try:
            if self._is_plain_jpeg:  # the same pixels as Pillow's, in two thirds of the time
                min_size = {"min_height": -(-self.size[0] // reduction), "min_width": -(-self.size[1] // reduction)}
                array = simplejpeg.decode_jpeg(self._bytes, "RGB", min_factor=reduction, **min_size)  # (H, W, 3)
            elif _is_deep_color(self._file):
                array = self._format.from_array(self._deep_colors(), self._path)
            else:
                upright = ImageOps.exif_transpose(self._file) if self.is_turned else self._file  # which copies it
                array = self._format.from_pillow(upright, self._path)  # (H, W, C)
        except UserError:
            raise
        except (*UNREADABLE, ValueError) as error:
            raise decoding_error(self._path, error) from error
        return _tensor(array)

    def _deep_colors(self) -> npt.NDArray[Any]:
        """Decode a colour PNG of 16 bits per channel to (H, W, C); without alpha unless it is asked for.

        Raises:
            RuntimeError: If imagecodecs is not installed.
        """
        try:
            import imagecodecs
        except ImportError as error:
            raise UnavailableError(
                f"{self._path}: has 16 bits per channel in colour, which needs imagecodecs: pip install "
                "'deeplab_lightning[multiband]', or save it with 8 bits, or as .npy"
            ) from error
        array: npt.NDArray[Any] = imagecodecs.png_decode(self._bytes)
        has_alpha = array.shape[-1] in {2, 4} and array.shape[-1] != self._format.channels
        return array[..., :-1] if has_alpha else array

    def _opened_size(self) -> tuple[int, int]:
        """Open the file with Pillow and return its upright (height, width)."""
        try:
            with _any_size():
                self._file = Image.open(io.BytesIO(self._bytes))
            self.is_turned = exif_orientation(self._file) != 1
            self.is_multiband = is_multiband(self._file)
            size = _upright_size(self._file)
        except UNREADABLE as error:
            raise decoding_error(self._path, error) from error
        return size


class ArrayFile(ImageSource):
    """Read an image from a `.npy` or TIFF file as an array, upright. The header is read at once, the values later.

    Args:
        path: The file.
        image_format: Channels and values of its pixels.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it holds no array of two or three axes; `pixels` raises it if the array does not fit the format.
    """

    def __init__(self, path: Path, image_format: ImageFormat) -> None:
        self._path, self._format = path, image_format
        shape, self._orientation = array_header(path)
        self.is_turned = self._orientation != 1
        self.size = _array_size(shape, path, image_format.channels, self._orientation)

    def pixels(self, reduction: int = 1) -> Tensor:
        """Read the array as (C, H, W) uint8, in any memory order."""
        array = self._format.from_array(read_array(self._path), self._path)  # (H, W, C)
        return _tensor(np.ascontiguousarray(turned(array, self._orientation)) if self.is_turned else array)


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow open a file of any size, without its warning; `ImageFile` has a limit of its own."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def open_image(path: Path, image_format: ImageFormat = PLAIN, *, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """Open an image file of any kind without decoding it.

    Args:
        path: The file.
        image_format: Channels and values of its pixels.
        max_pixels: Largest number of pixels that is read from a file that is no array.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is no image.
    """
    suffix = path.suffix.lower()
    if suffix == ARRAY_SUFFIX or (suffix in TIFF_SUFFIXES and image_format.is_of_arrays):
        return ArrayFile(path, image_format)
    try:
        file = ImageFile(path, image_format, max_pixels=max_pixels)
    except UserError as error:
        if suffix in TIFF_SUFFIXES and isinstance(error.__cause__, UnidentifiedImageError):
            return ArrayFile(path, image_format)  # Pillow knows few kinds of bands
        raise
    return ArrayFile(path, image_format) if file.is_multiband else file


def read_image(path: Path, image_format: ImageFormat = PLAIN, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read an image as contiguous (C, H, W) uint8, turned upright by its EXIF tag.

    Args:
        path: The file.
        image_format: Channels and values of its pixels.
        max_pixels: Largest number of pixels that is read.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be decoded, or does not fit the format.
    """
    return planar(open_image(path, image_format, max_pixels=max_pixels).pixels())


def planar(pixels: Tensor) -> Tensor:
    """Make (C, H, W) uint8 pixels contiguous, without a copy if they are contiguous already.

    NumPy changes the memory order faster than torch.
    """
    return torch.from_numpy(np.ascontiguousarray(pixels.numpy()))


def image_size(path: Path, channels: int | None = None) -> tuple[int, int]:
    """Read the upright (height, width) of an image in pixels from the header of its file.

    Args:
        path: The file.
        channels: Number of channels of an array; if None, the shorter of its first and last axis holds them.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the header is not that of an image.
    """
    suffix = path.suffix.lower()
    if suffix == ARRAY_SUFFIX:
        return _array_file_size(path, channels)
    try:
        with Image.open(path) as file:
            return _array_file_size(path, channels) if is_multiband(file) else _upright_size(file)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such image") from error
    except UnidentifiedImageError as error:
        if suffix in TIFF_SUFFIXES:  # Pillow knows few kinds of bands
            return _array_file_size(path, channels)
        raise decoding_error(path, error) from error
    except UNREADABLE as error:
        raise decoding_error(path, error) from error


def _tensor(array: Pixels) -> Tensor:
    """Return (H, W, C) pixels as a tensor (C, H, W), which shares their memory if it can be written to."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).permute(2, 0, 1)


def _is_deep_color(file: Image.Image) -> bool:
    """Check whether a file has several channels of 16 bits, of which Pillow would drop the lower 8."""
    tiles: Any = getattr(file, "tile", ())  # one entry with the layout of the pixels, before they are loaded
    return file.format == "PNG" and any(";16" in str(tile[3]) for tile in tiles) and not file.mode.startswith("I")


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


def _array_file_size(path: Path, channels: int | None) -> tuple[int, int]:
    """Read the upright (height, width) of an array file."""
    shape, orientation = array_header(path)
    return _array_size(shape, path, channels, orientation)


def _array_size(shape: tuple[int, ...], path: Path, channels: int | None, orientation: int) -> tuple[int, int]:
    """Return the upright (height, width) of an array that is stored with an orientation."""
    height, width = split_shape(shape, path, channels)[0]
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def _upright_size(file: Image.Image) -> tuple[int, int]:
    """Return (height, width) after the rotation that the EXIF tag asks for."""
    height, width = stored_size(file)
    return (width, height) if exif_orientation(file) in _TRANSPOSED else (height, width)


def exif_orientation(file: Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright."""
    # Pillow would decode a whole PNG to look for a tag after the pixels.
    has_tags = file.format != "PNG" or "exif" in file.info
    found = file.getexif().get(_EXIF_ORIENTATION, 1) if has_tags else 1
    return found if found in range(1, 9) else 1


def decoding_error(path: Path, error: BaseException) -> UserError:
    """Build the error of a damaged or too large file from the first line of the decoder's message."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        return _size_error(path, int(pixels[1]) if pixels else None)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, UnidentifiedImageError):  # whose message names a buffer
        reason = "it is in no known image format"
    return UserError(f"{path}: cannot be decoded ({reason})")


def _size_error(path: Path, num_pixels: int | None) -> UserError:
    """Build the error of an image with more pixels than can be read."""
    found = "too many" if num_pixels is None else f"{num_pixels / 1e6:,.0f}"
    return UserError(
        f"{path}: has {found} megapixels, and at most {MAX_PIXELS / 1e6:,.0f} are read; predict it with "
        "--tile 1024, or cut it into parts"
    )
