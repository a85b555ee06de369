"""Reading pictures and masks from files."""

import io
import threading
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
_MAX_KEPT = 1 << 26  # bytes that a thread keeps to decode into, 22 megapixels
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width


class ImageSource(ABC):
    """A picture whose pixels are decoded when they are wanted, and no finer than they are wanted.

    Attributes:
        size: (height, width) in pixels, upright.
    """

    size: tuple[int, int]

    @abstractmethod
    def pixels(self, reduction: int = 1) -> Tensor:
        """(3, ceil(h / reduction), ceil(w / reduction)) uint8 RGB, in any memory order.

        Args:
            reduction: 1, or at most what `reduction` returned.
        """

    def scratch_pixels(self, reduction: int = 1) -> Tensor:
        """As `pixels`, but maybe in memory that the thread's next call overwrites: copy what is to stay."""
        return self.pixels(reduction)

    def reduction(self, scale: float) -> int:
        """How many times smaller it may be decoded to be shown at `scale` times its size: 1, 2, 4 or 8."""
        return 1


class DecodedImage(ImageSource):
    """A picture that is decoded already.

    Args:
        image: (3, H, W) uint8 RGB.
    """

    def __init__(self, image: Tensor) -> None:
        self._image = image.as_subclass(Tensor)
        self.size = (image.shape[-2], image.shape[-1])

    def pixels(self, reduction: int = 1) -> Tensor:
        return self._image


class ImageFile(ImageSource):
    """A picture file, turned upright by its EXIF tag. The header is read at once, the pixels later.

    A JPEG can be decoded 2, 4 or 8 times smaller for a fraction of the work: its blocks of 8x8 pixels
    are then transformed back at that size.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its header is not that of a picture, or it has more than 8 bits a channel;
            `pixels` raises it if the rest cannot be decoded.
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
        return next(r for r in (8, 4, 2, 1) if r == 1 or (self._is_plain_jpeg and scale * r <= 1))

    def pixels(self, reduction: int = 1) -> Tensor:
        return self._decoded(reduction, None)

    def scratch_pixels(self, reduction: int = 1) -> Tensor:
        return self._decoded(reduction, _scratch(self.size[0] * self.size[1] * 3) if self._is_plain_jpeg else None)

    def _decoded(self, reduction: int, buffer: npt.NDArray[np.uint8] | None) -> Tensor:
        try:
            if self._is_plain_jpeg:  # the same pixels as Pillow's, in two thirds of the time
                least = {"min_height": -(-self.size[0] // reduction), "min_width": -(-self.size[1] // reduction)}
                array = simplejpeg.decode_jpeg(self._bytes, "RGB", min_factor=reduction, buffer=buffer, **least)
            else:
                array = np.array(ImageOps.exif_transpose(self._file).convert("RGB"))  # (H, W, 3)
        except (OSError, SyntaxError, ValueError) as error:
            raise self._decoding_error(error) from error
        return torch.from_numpy(array).permute(2, 0, 1)

    def _opened_size(self) -> tuple[int, int]:
        try:
            self._file = Image.open(io.BytesIO(self._bytes))
            orientation = _orientation(self._file)
        except (OSError, SyntaxError) as error:
            raise self._decoding_error(error) from error
        if self._file.mode.startswith("I") or self._file.mode == "F":
            raise UserError(f"{self._path}: has more than 8 bits a channel; convert it to 8 bits")
        width, height = self._file.size
        return (width, height) if orientation in _TRANSPOSED else (height, width)

    def _decoding_error(self, error: BaseException) -> ValueError:
        return ValueError(f"{self._path}: cannot be decoded ({_first_line(error)})")


_memory = threading.local()


def _scratch(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory of at least a size, kept per thread: where it is new, its first use takes as long as half the decoding."""
    if num_bytes > _MAX_KEPT:
        return np.empty(num_bytes, dtype=np.uint8)
    kept: npt.NDArray[np.uint8] | None = getattr(_memory, "kept", None)
    if kept is None or len(kept) < num_bytes:
        kept = _memory.kept = np.empty(num_bytes, dtype=np.uint8)
    return kept


def read_image(path: Path) -> Tensor:
    """A picture as contiguous (3, H, W) uint8 RGB, turned upright by its EXIF tag.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, or has more than 8 bits a channel.
    """
    return planar(ImageFile(path).pixels())


def planar(pixels: Tensor, *, is_copied: bool = False) -> Tensor:
    """(3, H, W) uint8 in any memory order -> the same, contiguous. NumPy is quicker at it than torch.

    Args:
        pixels: The picture.
        is_copied: Whether it is to be a copy even where it is contiguous already.
    """
    return torch.from_numpy(np.array(pixels.numpy(), order="C", copy=is_copied or None))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of an upright picture, from the file's header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the header is not that of a picture.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            orientation = _orientation(file)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such image") from error
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be decoded ({_first_line(error)})") from error
    return (width, height) if orientation in _TRANSPOSED else (height, width)


def read_mask(path: Path) -> npt.NDArray[Any]:
    """An index or palette mask as (H, W) raw ids, uint8 or uint16. A palette is never expanded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded or is a colour picture.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such mask")
    try:
        with Image.open(path) as file:
            file.load()
            mode, array = file.mode, np.asarray(file)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be decoded ({_first_line(error)})") from error
    if mode == "1":
        return array.astype(np.uint8)
    if mode in {"P", "L"}:
        return array
    if mode.startswith("I"):
        return array.astype(np.uint16)
    raise UserError(f"{path}: is a colour picture ({mode}); masks are index or palette PNG files of one channel")


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG in colour without EXIF tag, in a tenth of Pillow's time; None for all else."""
    if not data.startswith(b"\xff\xd8") or b"Exif\x00" in data:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # Pillow says what is wrong
        return None
    return (height, width) if colors == "YCbCr" else None


def _orientation(file: Image.Image) -> int:
    # Pillow would decode a whole PNG in search of a tag that stands after the pixels.
    has_tags = file.format != "PNG" or "exif" in file.info
    return int(file.getexif().get(_EXIF_ORIENTATION, 1)) if has_tags else 1


def _first_line(error: BaseException) -> str:
    """The decoder's own words."""
    return str(error).splitlines()[0]
