"""Join data sets to one."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from torch import Tensor

from deeplab_lightning.data.datasets.base import MaskFacts, SegmentationDataset
from deeplab_lightning.data.images import ImageSource


class JoinedDataset(SegmentationDataset):
    """Show the images of several data sets of the same classes, one after the other.

    The images of the first keep their keys; those of the others get `extra_0/`, `extra_1/`, ... in front.

    Args:
        datasets: The data sets, at least one.
    """

    def __init__(self, datasets: Sequence[SegmentationDataset]) -> None:
        super().__init__("raise")
        first, *others = datasets
        self._parts = list(datasets)
        self.classes, self.image_format = first.classes, first.image_format
        self.names = [
            *first.names,
            *(f"extra_{number}/{name}" for number, own in enumerate(others) for name in own.names),
        ]
        self.paths = [path for own in datasets for path in own.paths]
        self._ends = list(accumulate(len(own) for own in datasets))

    def _find(self, index: int) -> tuple[SegmentationDataset, int]:
        """Return the data set of an image and its index there."""
        part = bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)

    @property
    def source(self) -> str:
        """Return the locations of all data sets."""
        return " and ".join(own.source for own in self._parts)

    def open_image(self, index: int) -> ImageSource:
        """Open image `index` without decoding it."""
        dataset, own = self._find(index)
        return dataset.open_image(own)

    def read_mask(self, index: int) -> Tensor:
        """Read the train ids of image `index`: (H, W) uint8."""
        dataset, own = self._find(index)
        return dataset.read_mask(own)

    def inspect_mask(self, index: int) -> MaskFacts:
        """Read the mask of image `index` with what a scan wants to know about its file."""
        dataset, own = self._find(index)
        return dataset.inspect_mask(own)

    def count_objects(self, index: int, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Count the objects of each class in image `index` as its data set does."""
        dataset, own = self._find(index)
        return dataset.count_objects(own, mask)

    def fingerprint(self, index: int) -> str:
        """Return the key of image `index` in its data set."""
        dataset, own = self._find(index)
        return dataset.fingerprint(own)

    def remarks(self) -> list[str]:
        """Return the remarks of all data sets."""
        return [remark for own in self._parts for remark in own.remarks()]
