"""Prepare images for a network as in the evaluation of its training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.resizing import shrink


class Preprocessing(nn.Module):
    """Shrink uint8 images to the evaluation size, and normalise them.

    It has no weights and adds nothing to a state dict.

    Args:
        mean: Mean of the pixels (RGB, 0-1).
        std: Standard deviation of these pixels.

    Attributes:
        max_size: Longer side in pixels to which larger images are shrunk, except in training; None for no limit.
        transforms: Class path of evaluation transforms that are not `EvalTransforms`, and that users have to apply
            themselves; None if there are none.
        memory_format: Memory format of the normalised images.
    """

    mean: Tensor  # (3, 1, 1), on the scale of 0-255
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.max_size: int | None = None
        self.transforms: str | None = None
        self.memory_format = torch.contiguous_format
        for name, values in (("mean", mean), ("std", std)):
            pixels = torch.tensor(values, dtype=torch.float32)[:, None, None] * 255
            self.register_buffer(name, pixels, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convert (B, 3, H, W) uint8 RGB to normalised float (B, 3, h, w); return float images unchanged."""
        if images.dtype != torch.uint8:
            return images
        return self.normalize(images if self.training else self.shrink(images))

    def shrink(self, images: Tensor) -> Tensor:
        """Shrink (..., 3, H, W) uint8 until the longer side is at most `max_size` pixels."""
        return shrink(images, self.max_size)

    def normalize(self, images: Tensor) -> Tensor:
        """Convert (B, 3, H, W) uint8 RGB to float of zero mean and unit deviation."""
        scaled = (images.float() - self.mean) / self.std
        # The dtype of the buffers is that of the network, not float32 with precision bf16-true.
        return scaled.to(self.mean.dtype).contiguous(memory_format=self.memory_format)


def image_batch(images: Tensor) -> Tensor:
    """Return images as a batch (B, 3, H, W).

    Args:
        images: (B, 3, H, W) or (3, H, W) uint8.

    Raises:
        ValueError: If they have another shape or dtype.
    """
    if images.dtype != torch.uint8 or images.ndim not in {3, 4} or images.shape[-3] != 3:
        raise UserError(
            "predict takes RGB images in 0-255, (B, 3, H, W) or (3, H, W) uint8, got "
            f"{tuple(images.shape)} {images.dtype}."
        )
    return images if images.ndim == 4 else images[None]
