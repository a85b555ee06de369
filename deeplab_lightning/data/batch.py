"""Define samples and batches, the values that travel from the data to the network.

Shape letters of the whole package: B batch, C channels, H height and W width in pixels, K classes (void
not counted), s output stride. Images are RGB unless `data.image_format` says otherwise;
`mask` holds train ids in [0, K) or `IGNORE_INDEX`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError

__all__ = ["IGNORE_INDEX", "Batch", "Sample", "Unreadable", "collate", "collate_by_size", "collate_readable"]


class Sample(NamedTuple):
    """Hold one image with its mask.

    Attributes:
        image: (C, H, W) uint8.
        mask: (H, W) uint8 train ids, or None without labels (predict).
        name: Key of the image in its data set, a relative path.
        size: (height, width) of the file in pixels, before any transform.
    """

    image: Tensor
    mask: Tensor | None
    name: str
    size: tuple[int, int]


class Unreadable(NamedTuple):
    """Hold an image to predict that cannot be read.

    Attributes:
        name: Key of the image.
        reason: The file and its fault, in one line.
    """

    name: str
    reason: str


class Batch(NamedTuple):
    """Hold images of one size with their masks.

    Attributes:
        image: (B, C, H, W) uint8 from the loader; float and normalised once it is on the device.
        mask: (B, H, W) uint8 train ids, or None.
        names: B image keys.
        sizes: B pairs (height, width) of the files, in pixels.
        num_counted: B numbers of pixels that are not ignored, known before the masks are on a device; None if unknown.
    """

    image: Tensor
    mask: Tensor | None
    names: list[str]
    sizes: list[tuple[int, int]]
    num_counted: list[int] | None = None

    def count_pixels(self) -> list[int]:
        """Return the number of pixels of each image that are not ignored; waits for the device if it is unknown."""
        if self.num_counted is not None:
            return self.num_counted
        assert self.mask is not None
        return _counted(self.mask)


def as_batches(found: Any) -> list[Batch]:
    """Return what a loader yielded as a list of batches; one batch becomes a list of one.

    Raises:
        UserError: If it is something else, such as a pair of images and masks.
    """
    batches = [found] if isinstance(found, Batch) else found
    if isinstance(batches, list | tuple) and all(isinstance(batch, Batch) for batch in batches):
        return list(batches)
    raise loader_error(found)


def loader_error(found: Any) -> UserError:
    """Describe what a loader yielded instead of batches."""
    parts = f" of {', '.join(type(part).__name__ for part in found)}" if isinstance(found, list | tuple) else ""
    return UserError(
        f"loaders must yield deeplab_lightning.data.Batch, got a {type(found).__name__}{parts}: take "
        "SegmentationDataModule, or a collate_fn that returns Batch(image, mask, names, sizes)."
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a batch of plain tensors (no tv_tensors)."""
    masks = [s.mask.as_subclass(Tensor) for s in samples if s.mask is not None]
    mask = torch.stack(masks) if masks else None  # (B, H, W)
    return Batch(
        image=torch.stack([s.image.as_subclass(Tensor) for s in samples]),  # (B, C, H, W)
        mask=mask,
        names=[s.name for s in samples],
        sizes=[s.size for s in samples],
        num_counted=None if mask is None else _counted(mask),
    )


def collate_by_size(samples: Sequence[Sample | None]) -> list[Batch]:
    """Stack samples into one batch per image size, in order of first appearance; None counts for nothing.

    Evaluation images keep their own sizes. Padding them to a common size would change the input of the
    image pooling, and the metrics would depend on the batch size.
    """
    by_size: dict[tuple[int, ...], list[Sample]] = {}
    for sample in filter(None, samples):
        by_size.setdefault(tuple(sample.image.shape), []).append(sample)
    return [collate(group) for group in by_size.values()]


def collate_readable(samples: Sequence[Sample | Unreadable | None]) -> list[Batch | Unreadable]:
    """Stack samples as `collate_by_size` does, followed by the images that cannot be read."""
    batches = collate_by_size([sample for sample in samples if isinstance(sample, Sample)])
    return [*batches, *(sample for sample in samples if isinstance(sample, Unreadable))]


def _counted(mask: Tensor) -> list[int]:
    return (mask != IGNORE_INDEX).flatten(1).sum(dim=1).tolist()
