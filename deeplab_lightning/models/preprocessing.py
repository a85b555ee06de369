"""Prepare images for a network as in the evaluation of its training."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.resizing import shrink


class Preprocessing(nn.Module):
    """Shrink uint8 images to the evaluation size, and normalise them.

    It has no weights and adds nothing to a state dict.

    Args:
        mean: Mean of each channel (RGB, 0-1).
        std: Standard deviation of each channel.

    Attributes:
        max_size: Longer side in pixels to which larger images are shrunk, except in training; None for no limit.
        transforms: Class path of evaluation transforms that are not `EvalTransforms`, and that users have to apply
            themselves; None if there are none.
        image_format: Arguments of the `ImageFormat` of the training images; None for RGB of 8 bits.
        channels_last: Whether the normalised images are in channels-last memory.
    """

    mean: Tensor  # (C, 1, 1), on the scale of 0-255
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.max_size: int | None = None
        self.transforms: str | None = None
        self.image_format: dict[str, Any] | None = None
        self.channels_last = False
        self._statistics = tuple(mean), tuple(std)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, _of_pixels(values), persistent=False)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise by other values, one per channel, on the scale of 0-1."""
        self._statistics = tuple(mean), tuple(std)
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(_of_pixels(values, "cpu"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the statistics as a module does, with their values if they come from the `meta` device."""
        had_values = not self.mean.is_meta
        super()._apply(fn, recurse)
        if not had_values and not self.mean.is_meta:
            self.set_statistics(*self._statistics)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Leave the `meta` device, where a state dict with `assign=True` gives all others their values."""
        super()._load_from_state_dict(*arguments)
        if self.mean.is_meta and arguments[2].get("assign_to_params_buffers"):
            self.mean, self.std = (_of_pixels(values, "cpu") for values in self._statistics)

    def forward(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) uint8 to normalised float (B, C, h, w); return float images unchanged."""
        if images.dtype != torch.uint8:
            return images
        return self.normalize(images if self.training else self.shrink(images))

    def shrink(self, images: Tensor) -> Tensor:
        """Shrink (..., C, H, W) uint8 until the longer side is at most `max_size` pixels."""
        return shrink(images, self.max_size)

    def normalize(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) uint8 to float of zero mean and unit deviation."""
        scaled = (images.float() - self.mean) / self.std
        # The dtype of the buffers is that of the network, not float32 with precision bf16-true.
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return scaled.to(self.mean.dtype).contiguous(memory_format=memory_format)


def _of_pixels(values: Sequence[float], device: str | None = None) -> Tensor:
    """Return values per channel as (C, 1, 1) on the scale of 0-255."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] * 255


def image_batch(images: Tensor, channels: int = 3) -> Tensor:
    """Return images as a batch (B, C, H, W).

    Args:
        images: (B, C, H, W) or (C, H, W) uint8.
        channels: Number of channels C.

    Raises:
        ValueError: If they have another shape or dtype.
    """
    if images.dtype != torch.uint8 or images.ndim not in {3, 4} or images.shape[-3] != channels:
        raise UserError(
            f"predict takes {'RGB images' if channels == 3 else f'images of {channels} channels'} in 0-255, "
            f"(B, {channels}, H, W) or ({channels}, H, W) uint8, got {tuple(images.shape)} {images.dtype}."
        )
    return images if images.ndim == 4 else images[None]
