"""Apply transforms of other libraries to a crop and its mask, and paste objects of other images into it."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn
from torchvision import tv_tensors

from deeplab_lightning.data.classes import IGNORE_INDEX
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


class CopyPaste:
    """Paste objects of another training crop into a crop (Ghiasi et al. 2021), rare classes first.

    An object is an 8-connected region of one class in the other crop. It keeps its place there, with a border of void
    of `border` pixels, since its outline is not that of a photograph.

    Args:
        probability: Probability that anything is pasted into a crop, in [0, 1].
        max_objects: Largest number of objects that are pasted; it is drawn uniformly from 1.
        min_pixels: Smallest object.
        max_share: Largest object, as a share of the crop: larger regions are ground or sky.
        border: Width of the void around an object in pixels; 0 for none.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        probability: float = 0.5,
        *,
        max_objects: int = 4,
        min_pixels: int = 50,
        max_share: float = 0.2,
        border: int = 1,
    ) -> None:
        if not 0 <= probability <= 1 or not 0 < max_share <= 1 or max_objects < 1 or min_pixels < 1 or border < 0:
            raise UserError(
                "CopyPaste needs probability in [0, 1], max_share in (0, 1], max_objects and min_pixels of at least 1 "
                f"and border of at least 0, got {probability}, {max_share}, {max_objects}, {min_pixels} and {border}."
            )
        self.probability, self.max_objects, self.border = probability, max_objects, border
        self.min_pixels, self.max_share = min_pixels, max_share

    def __call__(
        self,
        crop: tuple[Tensor, Tensor],
        donor: tuple[Tensor, Tensor],
        class_pixels: npt.NDArray[np.int64],
        *,
        has_background: bool,
    ) -> tuple[Tensor, Tensor]:
        """Paste objects of one crop into another.

        Args:
            crop: Image (C, H, W) and mask (H, W) in uint8.
            donor: The other crop, of the same size.
            class_pixels: (K,) pixels of the classes in the training images; a class is drawn by 1 / sqrt(pixels).
            has_background: Whether class 0 is no object.

        Returns:
            Image and mask in their own memory; `crop` itself if the other one holds no object.
        """
        labels = donor[1].as_subclass(Tensor).numpy()
        objects = self._objects(labels, has_background=has_background)
        if not objects:
            return crop
        weights = torch.tensor([1 / np.sqrt(max(int(class_pixels[c]), 1)) for c, _ in objects], dtype=torch.float64)
        count = min(len(objects), 1 + int(torch.randint(self.max_objects, ())))
        chosen = torch.multinomial(weights, count).tolist()
        is_pasted = np.any([objects[i][1] for i in chosen], axis=0)
        image, mask = crop[0].clone(), crop[1].clone()
        pasted = torch.from_numpy(is_pasted)
        if self.border:
            ring = ndimage.binary_dilation(is_pasted, iterations=self.border) & ~is_pasted
            mask[torch.from_numpy(ring)] = IGNORE_INDEX
        image[:, pasted], mask[pasted] = donor[0][:, pasted], donor[1][pasted]
        return image, mask

    def _objects(
        self, labels: npt.NDArray[np.uint8], *, has_background: bool
    ) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        """List class and (H, W) region of the objects of a mask."""
        found = []
        for train_id in np.unique(labels):
            if train_id == IGNORE_INDEX or (has_background and train_id == 0):
                continue
            regions, _ = ndimage.label(labels == train_id, structure=np.ones((3, 3)))
            sizes = np.bincount(regions.reshape(-1))
            for number in range(1, len(sizes)):
                if self.min_pixels <= sizes[number] <= self.max_share * labels.size:
                    found.append((int(train_id), regions == number))
        return found
