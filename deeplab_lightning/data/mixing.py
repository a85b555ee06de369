"""Paste parts of another training crop into a crop: objects, classes or a rectangle."""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.errors import UserError


class CropMix(ABC):
    """Paste a part of another training crop into a crop.

    Args:
        probability: Probability that anything is pasted into a crop, in [0, 1].

    Raises:
        ValueError: If the probability is outside [0, 1].
    """

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"{type(self).__name__} needs a probability in [0, 1], got {probability}.")
        self.probability = probability

    @abstractmethod
    def part(
        self, labels: npt.NDArray[np.uint8], class_pixels: npt.NDArray[np.int64], *, has_background: bool
    ) -> npt.NDArray[np.bool_] | None:
        """Choose the pixels of the other crop that are pasted, by torch's random numbers.

        Args:
            labels: (H, W) train ids of the other crop.
            class_pixels: (K,) pixels of the classes in the training images.
            has_background: Whether class 0 is no object.

        Returns:
            (H, W) mask of the pixels; None if there is nothing to paste.
        """

    def border(self) -> int:
        """Return the width in pixels of the void around what is pasted."""
        return 0

    def __call__(
        self,
        crop: tuple[Tensor, Tensor],
        donor: tuple[Tensor, Tensor],
        class_pixels: npt.NDArray[np.int64],
        *,
        has_background: bool,
    ) -> tuple[Tensor, Tensor]:
        """Paste a part of one crop into another, at the same place.

        Args:
            crop: Image (C, H, W) and mask (H, W) in uint8.
            donor: The other crop, of the same size.
            class_pixels: (K,) pixels of the classes in the training images.
            has_background: Whether class 0 is no object.

        Returns:
            Image and mask in their own memory; `crop` itself if there is nothing to paste.
        """
        is_pasted = self.part(donor[1].as_subclass(Tensor).numpy(), class_pixels, has_background=has_background)
        if is_pasted is None:
            return crop
        image, mask = crop[0].clone(), crop[1].clone()
        pasted = torch.from_numpy(is_pasted)
        if width := self.border():
            ring = ndimage.binary_dilation(is_pasted, iterations=width) & ~is_pasted
            mask[torch.from_numpy(ring)] = IGNORE_INDEX
        image[:, pasted], mask[pasted] = donor[0][:, pasted], donor[1][pasted]
        return image, mask


class CopyPaste(CropMix):
    """Paste objects of another training crop into a crop (Ghiasi et al. 2021), rare classes first.

    An object is an 8-connected region of one class in the other crop; its class is drawn by 1 / sqrt(pixels). It keeps
    its place, with a border of void of `border` pixels, since its outline is not that of a photograph.

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
        super().__init__(probability)
        if not 0 < max_share <= 1 or max_objects < 1 or min_pixels < 1 or border < 0:
            raise UserError(
                "CopyPaste needs max_share in (0, 1], max_objects and min_pixels of at least 1 and border of at least "
                f"0, got {max_share}, {max_objects}, {min_pixels} and {border}."
            )
        self.max_objects, self.min_pixels, self.max_share, self._border = max_objects, min_pixels, max_share, border

    def border(self) -> int:
        """Return the width in pixels of the void around an object."""
        return self._border

    def part(
        self, labels: npt.NDArray[np.uint8], class_pixels: npt.NDArray[np.int64], *, has_background: bool
    ) -> npt.NDArray[np.bool_] | None:
        """Choose objects of the other crop."""
        objects = self._objects(labels, has_background=has_background)
        if not objects:
            return None
        weights = torch.tensor([1 / np.sqrt(max(int(class_pixels[c]), 1)) for c, _ in objects], dtype=torch.float64)
        count = min(len(objects), 1 + int(torch.randint(self.max_objects, ())))
        chosen = torch.multinomial(weights, count).tolist()
        return np.any([objects[i][1] for i in chosen], axis=0)

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


class ClassMix(CropMix):
    """Paste half of the classes of another training crop into a crop (Olsson et al. 2021), with their true labels.

    Every pixel of the classes that are drawn keeps its place. Of one class alone, none is pasted.

    Args:
        probability: Probability that anything is pasted into a crop, in [0, 1].

    Raises:
        ValueError: If the probability is outside [0, 1].
    """

    def part(
        self, labels: npt.NDArray[np.uint8], class_pixels: npt.NDArray[np.int64], *, has_background: bool
    ) -> npt.NDArray[np.bool_] | None:
        """Choose half of the classes of the other crop, rounded down."""
        present = np.unique(labels)
        present = present[present != IGNORE_INDEX]
        if len(present) < 2:
            return None
        return np.isin(labels, present[torch.randperm(len(present))[: len(present) // 2].numpy()])


class CutMix(CropMix):
    """Paste a rectangle of another training crop into a crop (Yun et al. 2019; French et al. 2020).

    Its share of the crop's pixels is drawn uniformly, its shape is that of the crop, and its place is random.

    Args:
        probability: Probability that anything is pasted into a crop, in [0, 1].

    Raises:
        ValueError: If the probability is outside [0, 1].
    """

    def part(
        self, labels: npt.NDArray[np.uint8], class_pixels: npt.NDArray[np.int64], *, has_background: bool
    ) -> npt.NDArray[np.bool_] | None:
        """Choose a rectangle."""
        side = float(torch.rand(())) ** 0.5
        rows, columns = (max(1, round(side * length)) for length in labels.shape)
        top, left = (int(torch.randint(n - m + 1, ())) for n, m in zip(labels.shape, (rows, columns), strict=True))
        is_pasted = np.zeros(labels.shape, dtype=bool)
        is_pasted[top : top + rows, left : left + columns] = True
        return is_pasted
