"""Turn logits into labels, in all commands by the same function."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.kernels import Door
from deeplab_lightning.models.preprocessing import image_batch
from deeplab_lightning.resizing import resize

Postprocess = nn.Module | Callable[..., Any]
"""(images (B, 3, H, W) uint8, logits (B, K, H, W)) -> labels (B, H, W) or probabilities (B, K, H, W)."""


def label_images(module: Any, images: Tensor, *, door: Door, postprocess: Postprocess | None = None) -> Tensor:
    """Find the class of each pixel of images: shrink, network, resize and postprocess.

    Args:
        module: A `SegmentationModule` in evaluation mode.
        images: (B, C, H, W) or (C, H, W) uint8, of any H and W; RGB if C is 3.
        door: See `find_labels`.
        postprocess: See `find_labels`.

    Returns:
        (B, H, W) or (H, W) uint8.

    Raises:
        ValueError: If the images have another shape or dtype.
    """
    size, preprocess = (images.shape[-2], images.shape[-1]), module.net.preprocess
    shrunk = preprocess.shrink(image_batch(images, module.net.in_channels).to(preprocess.mean.device))
    labels = find_labels(door.logits(module, shrunk), shrunk, size, door=door, postprocess=postprocess)
    return labels.reshape(*images.shape[:-3], *size)


def find_labels(
    logits: Tensor, images: Tensor, size: tuple[int, int], *, door: Door, postprocess: Postprocess | None = None
) -> Tensor:
    """Find the class of each pixel.

    Args:
        logits: (B, K, h, w) float, at the images' size or before the resize to it.
        images: (B, 3, H, W) uint8.
        size: Height and width of the labels, such as those of the image file.
        door: Resizes and compares the logits.
        postprocess: Function of the images and their logits at the images' size; the highest logit if None.

    Returns:
        (B, *size) uint8.

    Raises:
        ValueError: If `postprocess` returns neither labels nor probabilities.
    """
    image_size = (images.shape[-2], images.shape[-1])
    if postprocess is None:
        return door.labels(logits if size == image_size else resize(logits.float(), image_size), size)
    result: Tensor = postprocess(images, resize(logits.float(), image_size))
    if result.is_floating_point() and result.ndim == 4:
        return door.labels(result, size)
    if result.is_floating_point() or result.ndim != 3:
        raise UserError(
            "postprocess must return integer labels (B, H, W) or probabilities (B, K, H, W), got "
            f"{tuple(result.shape)} {result.dtype}."
        )
    return F.interpolate(result[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(torch.uint8)
