"""Count what mIoU does not show, per image: contours of classes, and objects by their size."""

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from deeplab_lightning.metrics.boundary import boundary_margins
from deeplab_lightning.metrics.per_image import PARTS

SIZE_LIMITS = (1 / 300, 3 / 100)
"""Share of the image from which on an object is medium, and large: COCO's 32x32 and 96x96 pixels of 640x480, as shares,
so that an object keeps its size where images are evaluated at another one."""
_EIGHT = np.ones((3, 3), dtype=bool)  # a pixel touches its 8 neighbours


def image_details(preds: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Count the pixels near contours, and those of objects by size, of each image.

    An object is a connected region of a class in the truth; objects of a class that touch are one. False pixels
    belong to no object, so an object has no IoU: what is counted is how many of its pixels are found.

    Args:
        preds: (B, H, W) integer in [0, K).
        mask: (B, H, W) integer in [0, K), or 255 for ignored pixels.
        num_classes: Number of classes K.

    Returns:
        (B, 4, 3, K) int64 on the CPU, in the order of `PARTS`. Of the boundary, pixels in the boundaries of truth and
        prediction, in that of the truth, in that of the prediction, see `boundary_iou`; of objects of a size, their
        pixels that are found, all their pixels, and their number.
    """
    contours = boundary_margins(preds, mask, num_classes).cpu()[:, None]  # (B, 1, 3, K)
    pairs = zip(preds.cpu().numpy(), mask.cpu().numpy(), strict=True)
    sizes = np.stack([_size_counts(labels, truth, num_classes) for labels, truth in pairs])
    return torch.cat([contours, torch.from_numpy(sizes)], dim=1)


def _size_counts(labels: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], k: int) -> npt.NDArray[np.int64]:
    """Count found pixels, pixels and number of the objects of each size, (3, 3, K), in labels and truth (H, W)."""
    counts = np.zeros((len(PARTS) - 1, 3, k), dtype=np.int64)
    limits = np.array(SIZE_LIMITS) * truth.size
    boxes = ndimage.find_objects(np.where(truth < k, truth.astype(np.int32) + 1, 0), k)
    for train_id, box in enumerate(boxes):
        if box is None:
            continue
        regions, number = ndimage.label(truth[box] == train_id, _EIGHT)
        areas = np.bincount(regions.reshape(-1), minlength=number + 1)[1:]
        found = np.bincount(regions[labels[box] == train_id], minlength=number + 1)[1:]
        size = np.searchsorted(limits, areas, side="right")
        for row, values in enumerate((found, areas, np.ones_like(areas))):
            counts[:, row, train_id] = np.bincount(size, weights=values, minlength=len(counts))
    return counts
