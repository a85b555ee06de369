"""Apply transforms of other libraries to a crop and its mask."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.mixing import CopyPaste as CopyPaste  # its class path in configurations of before
from deeplab_lightning.errors import UserError

_COVERAGE = (1, 2)  # values of two masks: a pixel that a transform fills in has its own value in at most one of them


def augment(image: Tensor, mask: Tensor, augmentations: Sequence[Callable[..., Any]]) -> tuple[Tensor, Tensor]:
    """Apply transforms to a crop and its mask in turn.

    A module is called with image and mask as tv_tensors, as those of `torchvision.transforms.v2` are. Pixels that it
    fills in, as rotations do at the corners, are ignored, whatever its fill is. Anything else is called as
    `transform(image=..., mask=...)` with arrays (H, W, C) and (H, W) and returns a mapping with both, as albumentations
    does; there, set `fill_mask: 255`.

    Args:
        image: (C, H, W) uint8.
        mask: (H, W) uint8 train ids.
        augmentations: The transforms.

    Returns:
        Image (C, H, W) and mask (H, W) in uint8.

    Raises:
        ValueError: If a transform changes the size or the dtype.
    """
    size, channels = mask.shape, len(image)
    for transform in augmentations:
        if isinstance(transform, nn.Module):
            coverage: list[Tensor] = [
                tv_tensors.Mask(torch.full(size, value, dtype=torch.uint8)) for value in _COVERAGE
            ]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*is currently passing through inputs.*")  # cutout of images
                image, mask, *covered = transform(tv_tensors.Image(image), tv_tensors.Mask(mask), *coverage)
            is_inside = torch.stack([c == v for c, v in zip(covered, _COVERAGE, strict=True)]).all(dim=0)
            mask = mask.where(is_inside, IGNORE_INDEX) if is_inside.shape == mask.shape else mask
        else:
            image, mask = _apply_by_keywords(transform, image, mask)
        name = type(transform).__name__
        if mask.shape != size or image.shape != (channels, *size):
            raise UserError(
                f"{name} of data.train_transforms.augmentations changes the crop from {(channels, *size)} to "
                f"{tuple(image.shape)} and its mask to {tuple(mask.shape)}; crops must keep their size."
            )
        if image.dtype != torch.uint8 or mask.dtype != torch.uint8:
            raise UserError(
                f"{name} of data.train_transforms.augmentations changes the crop to {image.dtype} and its mask to "
                f"{mask.dtype}; both must stay uint8, and the network normalises them."
            )
    return tv_tensors.Image(image), tv_tensors.Mask(mask)


def _apply_by_keywords(transform: Callable[..., Any], image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Call a transform with arrays by keyword; its own random generator is seeded from torch's."""
    if hasattr(transform, "set_random_seed"):
        transform.set_random_seed(int(torch.randint(2**31 - 1, ())))
    pixels = np.ascontiguousarray(image.as_subclass(Tensor).permute(1, 2, 0).numpy())
    result = transform(image=pixels, mask=mask.as_subclass(Tensor).numpy().copy())
    crop = torch.from_numpy(np.ascontiguousarray(result["image"])).permute(2, 0, 1)
    return crop, torch.from_numpy(np.ascontiguousarray(result["mask"]))
