"""The interface that all data sets share."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.classes import IGNORE_INDEX, ClassTable
from deeplab_lightning.data.images import ImageFile, ImageSource, planar
from deeplab_lightning.data.problems import OnError, Problem, data_error
from deeplab_lightning.errors import DataError

MIN_OBJECT_PIXELS = 50  # smaller regions are rests of overlaps and of annotation noise


class UnknownMaskValuesError(ValueError):
    """A mask holds raw ids that the class table does not."""

    def __init__(self, path: Path, values: Sequence[int]) -> None:
        super().__init__(f"{path}: mask values {list(values)} are not in the class table")
        self.path = path
        self.values = tuple(values)


class SegmentationDataset(Dataset[Sample], ABC):
    """Pictures with masks of train ids, sorted by name, in uint8 and without augmentation.

    A subclass fills `classes`, `names` and `paths` (parallel, sorted by name) and reads one mask.
    What is wrong is found when it is built, or, where every file must be read for it, by
    `deeplab_lightning.data.scan.scan_dataset` before training.

    Attributes:
        classes: The class table.
        names: One key per image, a relative path; unique and sorted.
        paths: The image files.
        problems: What `on_error: skip` left out.
    """

    classes: ClassTable
    names: list[str]
    paths: list[Path]

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.problems: list[Problem] = []

    @abstractmethod
    def read_mask(self, index: int) -> Tensor:
        """Train ids of image `index`: (H, W) uint8."""

    @abstractmethod
    def fingerprint(self, index: int) -> str:
        """What image `index` and its mask depend on; changes when a file or the class table does."""

    @abstractmethod
    def remarks(self) -> list[str]:
        """What is legal but worth knowing, a sentence each."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the data lie, in one line."""

    def count_objects(self, index: int, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """(K,) objects of each class in image `index`: the 8-connected regions of at least 50 pixels.

        Args:
            index: The image.
            mask: Its (H, W) train ids.
        """
        counts = np.zeros(self.classes.num_classes, dtype=np.int64)
        for train_id in np.unique(mask[mask != IGNORE_INDEX]):
            regions, _ = ndimage.label(mask == train_id, structure=np.ones((3, 3)))
            counts[train_id] = np.count_nonzero(np.bincount(regions.reshape(-1))[1:] >= MIN_OBJECT_PIXELS)
        return counts

    def annotated(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """(K,) objects and (K,) shares of the picture by the annotations of image `index` alone.

        Overlaps count twice and no file is opened.

        Raises:
            DataError: If there is nothing but the mask to tell.
        """
        raise DataError(f"{self.source}: has masks but no annotations; set data.exact_areas: true.")

    def open_image(self, index: int) -> ImageSource:
        """Image `index`, not decoded yet. Override it for pictures that are no files."""
        return ImageFile(self.paths[index])

    @final
    def read_image(self, index: int) -> Tensor:
        """Image `index`: (3, H, W) uint8 RGB."""
        return planar(self.open_image(index).pixels())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        image = self.read_image(index)
        mask = self.read_mask(index)
        return Sample(
            tv_tensors.Image(image),
            tv_tensors.Mask(mask),
            self.names[index],
            (image.shape[1], image.shape[2]),
        )

    def report(self, problems: Sequence[Problem]) -> None:
        """Raise for the problems, or note them and drop their images, as `on_error` says.

        Raises:
            DataError: With `on_error: raise`, or if no image is left.
        """
        if problems and self.on_error == "raise":
            raise data_error(problems)
        self.problems.extend(problems)
        self._drop({name for problem in problems for name in problem.images})
        if not self.names:
            raise DataError(f"{self.source}: no image is left to use. `deeplab data check` lists why.")

    def _drop(self, names: Collection[str]) -> None:
        kept = [i for i, name in enumerate(self.names) if name not in names]
        if len(kept) < len(self.names):
            self._keep(kept)

    def _keep(self, indices: Sequence[int]) -> None:
        """Keep only these images; a subclass with more lists per image extends this."""
        self.names = [self.names[i] for i in indices]
        self.paths = [self.paths[i] for i in indices]


def size_problem(
    name: str, path: Path, image_size: tuple[int, ...], label: str, label_size: tuple[int, ...]
) -> Problem:
    """A picture and its labels have different sizes, both (height, width) in pixels."""
    return Problem(
        str(path),
        f"the image is {image_size[0]}x{image_size[1]} (height x width) but {label} {label_size[0]}x{label_size[1]}",
        "Resize neither by hand: export the labels again for this image, or remove the pair.",
        (name,),
    )


def to_tensor(mask: npt.NDArray[Any]) -> Tensor:
    """A NumPy mask as a tensor that owns its memory."""
    return torch.from_numpy(np.array(mask, dtype=np.uint8))  # a third of torch.tensor's time
