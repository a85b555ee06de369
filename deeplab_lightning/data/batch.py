"""What travels from the data to the network.

Shape legend of the whole package: B batch, C channels, H W pixels, K classes (void not counted),
s output stride. Pictures are RGB; `mask` holds train ids in [0, K) or `IGNORE_INDEX`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX

__all__ = ["IGNORE_INDEX", "Batch", "Sample", "collate", "collate_by_size"]


class Sample(NamedTuple):
    """One picture.

    Attributes:
        image: (3, H, W) uint8, RGB.
        mask: (H, W) uint8 train ids, or None where there is no truth (predict).
        name: The image's key in its data set, a relative path.
        size: (height, width) in pixels of the file, before any transform.
    """

    image: Tensor
    mask: Tensor | None
    name: str
    size: tuple[int, int]


class Batch(NamedTuple):
    """Pictures of one size.

    Attributes:
        image: (B, 3, H, W) uint8 from the loader; float, normalised, once on the device.
        mask: (B, H, W) uint8 train ids, or None.
        names: B image keys.
        sizes: B pairs (height, width) of the files.
    """

    image: Tensor
    mask: Tensor | None
    names: list[str]
    sizes: list[tuple[int, int]]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size. The tv_tensors become plain tensors here."""
    masks = [s.mask.as_subclass(Tensor) for s in samples if s.mask is not None]
    return Batch(
        image=torch.stack([s.image.as_subclass(Tensor) for s in samples]),  # (B, 3, H, W)
        mask=torch.stack(masks) if masks else None,  # (B, H, W)
        names=[s.name for s in samples],
        sizes=[s.size for s in samples],
    )


def collate_by_size(samples: Sequence[Sample]) -> list[Batch]:
    """One batch per picture size, in order of first appearance.

    Evaluation pictures keep their own sizes. Padding them to a common one would change what the
    image pooling sees, and so make the figures depend on the batch size.
    """
    by_size: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        by_size.setdefault(tuple(sample.image.shape), []).append(sample)
    return [collate(group) for group in by_size.values()]
