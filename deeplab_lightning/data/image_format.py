"""Turn image files of any number of channels and bits into uint8 pixels."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from deeplab_lightning.errors import UserError

_DEEP = 1024  # upper end of a range that values of 8 bits cannot be meant for
DEEP_MODES = ("I", "F")
"""Beginnings of Pillow's modes of more than 8 bits, all with one channel."""
Range = tuple[float, float]
Pixels = npt.NDArray[np.uint8]  # (H, W, C)


@dataclass(frozen=True)
class ImageFormat:
    """Say how image files become the input of the network: their channels, and values of more than 8 bits.

    Within the package images are uint8. Values of other types are clipped to `value_range` and scaled to 0-255, which
    keeps 256 steps between its two numbers, so these should lie close around the values that matter.

    Args:
        channels: Number of channels C: 1 for grey, 3 for RGB, otherwise the bands of `.npy` arrays or TIFF files. The
            first layer's ImageNet weights are adapted as timm does: added up for one channel, else repeated in turn
            and rescaled.
        value_range: (low, high), the values that become 0 and 255, or a list of such pairs, one per channel. Null for
            files of 8 bits.
        mean: Mean of each channel on the scale of 0-1, after `value_range`. If null, that of the backbone's ImageNet
            weights for RGB of 8 bits, else that of the training images.
        std: Standard deviation of each channel, likewise.
        nodata: Value of pixels that were not measured, such as -9999 or `.nan`; NaN then counts as such, too. A channel
            gets the mean of the image's measured pixels there, so that its mean stays that of measurements. Null if all
            pixels were measured; NaN then becomes 0.

    Raises:
        ValueError: If `channels` is less than 1, a range is empty, `nodata` is infinite, a deviation is not positive,
            or a list has not one entry per channel.
    """

    channels: int = 3
    value_range: Range | list[Range] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    nodata: float | Literal["nan"] | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f"image_format.channels must be at least 1, got {self.channels}.")
        pairs = self._pairs
        if len(pairs) not in {1, self.channels} or not (np.isfinite(pairs).all() and (pairs[:, 0] < pairs[:, 1]).all()):
            raise UserError(
                "image_format.value_range must be [low, high] with low below high, or such a pair for each of the "
                f"{self.channels} channels, got {self.value_range}."
            )
        if self.nodata is not None and np.isinf(float(self.nodata)):
            raise UserError(f"image_format.nodata must be a number, .nan or null, got {self.nodata}.")
        lists = [values for values in (self.mean, self.std) if values is not None]
        if len(lists) == 1 or any(len(values) != self.channels for values in lists):
            raise UserError(
                f"image_format.mean and std must both be null, or hold one value for each of the {self.channels} "
                f"channels, got {self.mean} and {self.std}."
            )
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"image_format.std must be positive, got {self.std}.")

    @property
    def _pairs(self) -> npt.NDArray[np.float32]:
        """Return (low, high) of all channels, (1, 2), or of each, (C, 2)."""
        return np.array(self.value_range or (0, 255), dtype=np.float32).reshape(-1, 2)

    @property
    def is_of_arrays(self) -> bool:
        """Check whether images have other channels than RGB, or a range, so that TIFF files are read as arrays."""
        return self.channels != 3 or self.value_range is not None

    @property
    def is_plain(self) -> bool:
        """Check whether images are RGB of 8 bits in which every pixel is measured."""
        return self.channels == 3 and self.value_range is None and self.nodata is None

    @property
    def key(self) -> str:
        """Return a text that differs between formats which give other pixels; empty for RGB of 8 bits."""
        nodata = "" if self.nodata is None else f" {self.nodata}"
        return "" if self.is_plain else f"{self.channels} {self.value_range}{nodata}"

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as plain values, for checkpoints."""
        ranges = None if self.value_range is None else np.asarray(self.value_range, dtype=float).tolist()
        own = {"channels": self.channels, "value_range": ranges, "mean": self.mean, "std": self.std}
        nodata = "nan" if self.nodata is not None and np.isnan(float(self.nodata)) else self.nodata  # JSON has no NaN
        return own if nodata is None else {**own, "nodata": nodata}

    def from_array(self, array: npt.NDArray[Any], path: Path) -> Pixels:
        """Convert an array to (H, W, C) uint8.

        Args:
            array: (H, W), (H, W, C) or (C, H, W), see `split_shape`. One channel is repeated for RGB.
            path: Its file, for messages.

        Raises:
            ValueError: If it has another number of channels, or more than 8 bits without `value_range`.
        """
        if array.dtype.kind not in "buif" or not array.size:
            raise UserError(f"{path}: holds {array.dtype} of shape {array.shape}, but images are arrays of numbers")
        size, channels = split_shape(array.shape, path, self.channels)
        if channels != self.channels and not (channels == 1 and self.channels == 3):
            raise _channel_error(path, channels, self.channels)
        if array.shape[:2] != size:  # (C, H, W)
            array = np.moveaxis(array, 0, -1)
        array = np.broadcast_to(array.reshape(*size, channels), (*size, self.channels))
        if array.dtype == bool:
            return array.astype(np.uint8) * np.uint8(255)
        if self.value_range is None:
            if array.dtype != np.uint8:
                raise _depth_error(path, array)
            return array if self.nodata is None else np.rint(self._filled(array, array)).astype(np.uint8)
        low, high = self._pairs.T
        if array.dtype == np.uint8 and (high >= _DEEP).all():
            raise UserError(
                f"{path}: has 8 bits, of which data.image_format.value_range {self.value_range} would leave nothing; "
                "give images like those that it was set for"
            )
        values = np.clip(np.where(np.isnan(array), low, array), low, high)  # no value is the lowest one
        scaled = (values - low) * (255 / (high - low))
        return np.rint(scaled if self.nodata is None else self._filled(scaled, array)).astype(np.uint8)

    def _filled(self, pixels: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Replace pixels that were not measured by the mean of the others in their channel, or by 0 without others.

        Args:
            pixels: (H, W, C) numbers of 0 to 255.
            values: (H, W, C) values in the file.
        """
        assert self.nodata is not None
        is_missing = (values == float(self.nodata)) | np.isnan(values)
        count = np.maximum((~is_missing).sum(axis=(0, 1)), 1)
        total = pixels.sum(axis=(0, 1), where=~is_missing, dtype=np.float64)  # in float32 it would stop growing
        return np.where(is_missing, (total / count).astype(np.float32), pixels)

    def from_pillow(self, file: Image.Image, path: Path) -> Pixels:
        """Convert an image that Pillow opened to (H, W, C) uint8.

        Raises:
            ValueError: If it has another number of channels, or more than 8 bits without `value_range`.
        """
        if file.mode.startswith(DEEP_MODES):
            return self.from_array(np.asarray(file), path)
        if isinstance(file.info.get("transparency"), bytes):  # of a palette, which Pillow warns of
            file = file.convert("RGBA")
        if self.channels == 3:
            return self.from_array(np.asarray(file if file.mode == "RGB" else file.convert("RGB")), path)
        if self.channels == 1:
            return self.from_array(np.asarray(file if file.mode == "L" else file.convert("RGB").convert("L")), path)
        if len(file.getbands()) != self.channels:
            raise _channel_error(path, len(file.getbands()), self.channels)  # Pillow would make the others up
        return self.from_array(np.asarray(file), path)


PLAIN = ImageFormat()
"""RGB of 8 bits."""


def measure_channels(images: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Measure mean and standard deviation of each channel over all pixels, on the scale of 0-1.

    Args:
        images: (C, H, W) uint8 each, of any sizes.
    """
    count, total, squares = 0, np.float64(0), np.float64(0)
    for image in images:
        pixels = image.flatten(1).numpy().astype(np.float64) / 255  # (C, H * W)
        count, total, squares = count + pixels.shape[1], total + pixels.sum(1), squares + np.square(pixels).sum(1)
    mean = np.asarray(total / count)
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.tolist(), np.maximum(std, 1 / 255).tolist()  # a channel without contrast is not blown up


def split_shape(shape: tuple[int, ...], path: Path, wanted: int | None = None) -> tuple[tuple[int, int], int]:
    """Return (height, width) and the number of channels of an array.

    The channels are the last or the first axis: the one of the wanted length, else the shorter one.

    Args:
        shape: Shape of the array.
        path: Its file, for messages.
        wanted: Number of channels that the network takes; None if it is unknown.

    Raises:
        ValueError: If it has neither two nor three axes.
    """
    if len(shape) == 2:
        return (shape[0], shape[1]), 1
    if len(shape) != 3:
        raise UserError(f"{path}: holds an array of shape {shape}, but images are (H, W), (H, W, C) or (C, H, W)")
    is_last = shape[2] <= shape[0] if wanted not in (shape[0], shape[2]) else shape[2] == wanted
    height, width, channels = shape if is_last else (*shape[1:], shape[0])
    return (height, width), channels


def _channel_error(path: Path, found: int, wanted: int) -> UserError:
    return UserError(
        f"{path}: has {found} channels, and the network takes {wanted}; set data.image_format.channels to {found}"
    )


def _depth_error(path: Path, array: npt.NDArray[Any]) -> UserError:
    return UserError(
        f"{path}: has more than 8 bits per channel (values {np.nanmin(array):g} to {np.nanmax(array):g}); set "
        "data.image_format.value_range to the values that become black and white, such as [0, 65535]"
    )
