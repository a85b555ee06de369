"""Define the interface of all data sets."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.classes import IGNORE_INDEX, ClassTable
from deeplab_lightning.data.image_format import PLAIN, ImageFormat
from deeplab_lightning.data.images import ImageSource, open_image, planar
from deeplab_lightning.data.problems import OnError, Problem, data_error
from deeplab_lightning.errors import DataError, UserError

MIN_OBJECT_PIXELS = 50  # smaller regions are left over from overlaps and annotation noise


class UnknownMaskValuesError(UserError):
    """Report raw ids in a mask that are not in the class table.

    Args:
        path: The mask file.
        values: The unknown raw ids.
    """

    def __init__(self, path: Path, values: Sequence[int]) -> None:
        super().__init__(f"{path}: mask values {list(values)} are not in the class table")
        self.path = path
        self.values = tuple(values)


class NoImageLeftError(DataError):
    """Report that `on_error: skip` left no image.

    Args:
        source: Location of the data.
        problems: The problems of the images, of which the message holds the first.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__(f"{source}: no usable image is left. {data_error(problems)}")
        self.source, self.problems = source, list(problems)


class MaskFacts(NamedTuple):
    """Hold what a scan learns from the labels of one image.

    Attributes:
        mask: (H, W) uint8, the train ids.
        counts: Number of pixels of each raw value in the mask file, or of each train id where there is no such file.
        is_raw: Whether `counts` is of raw values.
        palette: The colours R, G, B of the raw values 0, 1, ... if the file has a palette, else None.
        is_turned: Whether the mask file's EXIF tag asked for a rotation or reflection.
        num_invisible: Number of annotated objects that cover no pixel.
    """

    mask: Tensor
    counts: dict[int, int]
    is_raw: bool = False
    palette: bytes | None = None
    is_turned: bool = False
    num_invisible: int = 0


class SegmentationDataset(Dataset[Sample], ABC):
    """Provide images and masks of train ids in uint8 without augmentation, sorted by name.

    A subclass fills `classes`, `names` and `paths` (of equal length, sorted by name) and reads one mask.
    Problems are found when the data set is built, or by `deeplab_lightning.data.scan.scan_dataset` before
    training if every file must be read to find them.

    Args:
        on_error: `raise` stops at problems in `report`, `skip` leaves out the images concerned.

    Attributes:
        classes: The class table.
        names: One key per image, a relative path; unique and sorted.
        paths: The image files.
        problems: The problems that `on_error: skip` recorded.
        image_format: Channels and values of the images, which the data module sets.
    """

    image_format: ImageFormat = PLAIN
    classes: ClassTable
    names: list[str]
    paths: list[Path]

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.problems: list[Problem] = []

    @abstractmethod
    def read_mask(self, index: int) -> Tensor:
        """Read the train ids of image `index`: (H, W) uint8."""

    def inspect_mask(self, index: int) -> MaskFacts:
        """Read the mask of image `index` with what a scan wants to know about its file."""
        mask = self.read_mask(index)
        return MaskFacts(mask, count_values(mask.numpy()))

    @abstractmethod
    def fingerprint(self, index: int) -> str:
        """Return a key that changes when image `index`, its mask file or the class table changes."""

    @abstractmethod
    def remarks(self) -> list[str]:
        """Describe properties of the data that are valid but worth knowing, one sentence each."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Return the location of the data in one line."""

    def count_objects(self, index: int, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Count the objects of each class in image `index`: the 8-connected regions of at least 50 pixels.

        Args:
            index: Index of the image.
            mask: (H, W) uint8, the train ids of the image.

        Returns:
            (K,) int64.
        """
        counts = np.zeros(self.classes.num_classes, dtype=np.int64)
        for train_id in np.unique(mask[mask != IGNORE_INDEX]):
            regions, _ = ndimage.label(mask == train_id, structure=np.ones((3, 3)))
            counts[train_id] = np.count_nonzero(np.bincount(regions.reshape(-1))[1:] >= MIN_OBJECT_PIXELS)
        return counts

    def measure_annotations(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Compute object counts and areas of image `index` from its annotations, without opening a file.

        Overlaps of objects count for each of them.

        Args:
            index: Index of the image.

        Returns:
            (K,) number of objects of each class, and (K,) fraction of the image that each class covers.

        Raises:
            DataError: If the data set has masks but no annotations.
        """
        raise DataError(f"{self.source}: has masks but no annotations. Set data.exact_areas: true.")

    def open_image(self, index: int) -> ImageSource:
        """Open image `index` without decoding it. Override this method for images that are not files."""
        return open_image(self.paths[index], self.image_format)

    @final
    def read_image(self, index: int) -> Tensor:
        """Read image `index`: (C, H, W) uint8."""
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
        """Raise an error for the problems, or record them and drop their images if `on_error` is `skip`.

        Args:
            problems: Problems of this data set.

        Raises:
            DataError: If there is a problem and `on_error` is `raise`, or if no image is left.
        """
        if problems and self.on_error == "raise":
            raise data_error(problems)
        self.problems.extend(problems)
        self._drop({name for problem in problems for name in problem.images})
        if not self.names:
            raise NoImageLeftError(self.source, self.problems)

    def _drop(self, names: Collection[str]) -> None:
        kept = [i for i, name in enumerate(self.names) if name not in names]
        if len(kept) < len(self.names):
            self._keep(kept)

    def _keep(self, indices: Sequence[int]) -> None:
        """Keep only the images with these indices; a subclass with more lists per image extends this."""
        self.names = [self.names[i] for i in indices]
        self.paths = [self.paths[i] for i in indices]


def size_problem(
    name: str, path: Path, image_size: tuple[int, ...], label: str, label_size: tuple[int, ...]
) -> Problem:
    """Describe an image whose labels have another size.

    Args:
        name: Key of the image.
        path: The image file.
        image_size: (height, width) of the image in pixels.
        label: Start of the clause about the labels' size, such as `its mask is`.
        label_size: (height, width) of the labels in pixels.
    """
    return Problem(
        str(path),
        f"the image is {image_size[0]}x{image_size[1]} (height x width) but {label} {label_size[0]}x{label_size[1]}",
        "Export the labels again for this image, or remove the pair; do not resize either by hand.",
        (name,),
    )


def count_values(array: npt.NDArray[Any]) -> dict[int, int]:
    """Count the pixels of each value in an array of integers."""
    if array.dtype == np.uint8:
        counts = np.bincount(array.reshape(-1), minlength=1)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, numbers = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def to_tensor(mask: npt.NDArray[Any]) -> Tensor:
    """Copy a NumPy mask to a uint8 tensor."""
    return torch.from_numpy(np.array(mask, dtype=np.uint8))  # takes a third of torch.tensor's time
