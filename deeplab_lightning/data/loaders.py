"""Read the images of a training or an evaluation, and go on where a resumed training stopped."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import tv_tensors

from deeplab_lightning.data.batch import Batch, Sample, Unreadable
from deeplab_lightning.data.cache import content_key
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.images import planar
from deeplab_lightning.data.mixing import CropMix
from deeplab_lightning.data.transforms import TrainTransforms
from deeplab_lightning.errors import UserError

Transforms = Callable[[Any, Any], tuple[Tensor, Tensor | None]]
"""Function of an image and its mask."""


class ResumableLoader(DataLoader[Batch]):
    """Load batches from where a resumed training stopped.

    The sampler knows the place from the trainer, so there is no state to keep; Lightning warns about loaders without
    these methods.
    """

    def __iter__(self) -> Any:
        """Start reading when the first batch is asked for, not when the iterator is made.

        To count the steps for the schedule, Lightning makes the first iterator before it restores the trainer's
        state; worker processes would read the first epoch's images by then.
        """
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the state of any version."""


class EpochSampler(DistributedSampler[Sample]):
    """Shuffle by seed and epoch alone, and go on within an epoch where a resumed training stopped.

    It yields (epoch, position) instead of position: persistent workers learn the epoch from it. Lightning calls
    `set_epoch`, and does not replace a DistributedSampler.

    Args:
        dataset: The data set to sample from.
        seed: Seed of the order.
        batch_size: Images per batch.
        position: Called when an iterator is made; returns the epoch and the number of its batches that are done, or
            None where only `set_epoch` counts.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        *,
        seed: int,
        batch_size: int = 1,
        position: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        self.batch_size, self.position = batch_size, position
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        num_replicas, rank = (None, None) if is_distributed else (1, 0)
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)

    def __iter__(self) -> Any:
        start = 0
        if (found := self.position()) is not None:
            epoch, start = found
            self.set_epoch(epoch)
        epoch = self.epoch
        return ((epoch, index) for index in islice(super().__iter__(), start * self.batch_size, None))


def repeat_rare_images(indices: Sequence[int], is_present: npt.NDArray[np.bool_], share: float) -> list[int]:
    """Repeat the images of rare classes (Gupta et al. 2019).

    Args:
        indices: The N images of an epoch.
        is_present: (N, K) whether the image holds the class.
        share: Share t of the images, in (0, 1]: an image with a class that is in fewer of them, in the share f, is
            named sqrt(t / f) times, rounded up.
    """
    of_class = np.sqrt(share / np.maximum(is_present.mean(axis=0), 1 / len(indices))).clip(min=1)  # (K,)
    times = np.ceil(np.where(is_present, of_class, 1).max(axis=1)).astype(int)
    return np.repeat(indices, times).tolist()


class EvalSampler(DistributedSampler[Sample]):
    """Share the images of an evaluation among the processes, each image once.

    Lightning's sampler refuses fewer images than processes, and Lightning skips the evaluation in a process without a
    batch, for which the others would wait. So a process without an image gets one position that is None.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        super().__init__(dataset, shuffle=False)
        self._share: list[int | None] = [*range(self.rank, len(dataset), self.num_replicas)] or [None]  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._share)

    def __iter__(self) -> Any:
        return iter(self._share)


class TrainView(Dataset[Sample]):
    """Augment some images of a data set by random numbers that depend on seed, epoch and image only.

    Args:
        dataset: The data set.
        indices: Its images to show in an epoch; one that is repeated has other crops each time.
        transforms: The transforms.
        seed: The seed.
        copy_paste: Pastes parts of other images of `indices`; None pastes nothing.
        class_pixels: (K,) pixels of the classes in the training images, for `copy_paste`.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        indices: Sequence[int],
        transforms: Transforms,
        seed: int,
        *,
        copy_paste: CropMix | None = None,
        class_pixels: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.dataset, self.indices, self.transforms, self.seed = dataset, indices, transforms, seed
        self.copy_paste, self.class_pixels = copy_paste, class_pixels
        earlier: Counter[int] = Counter()
        self._copies: list[int] = []  # how often the image was named before
        for index in indices:
            self._copies.append(earlier[index])
            earlier[index] += 1

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        # A plain position comes from the sampler of Lightning's overfit_batches, with the same crops in each epoch.
        epoch, position = key if isinstance(key, tuple) else (0, key)
        index, copy = self.indices[position], self._copies[position]
        name = self.dataset.names[index]
        seed = int(content_key(self.seed, epoch, name, *([copy] if copy else []))[:15], 16)
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond to seed GPUs as well
            random.seed(seed)  # for transforms of other libraries
            crop, labels, size = self._crop(index)
            if self.copy_paste is not None and float(torch.rand(())) < self.copy_paste.probability:
                assert labels is not None
                crop, labels = self._pasted(self.copy_paste, crop, labels)
        random.setstate(python_state)
        return Sample(crop, labels, name, size)

    def _crop(self, index: int) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Cut an augmented crop out of image `index`; return it with its mask and the size of the file."""
        source, mask = self.dataset.open_image(index), self.dataset.read_mask(index)
        # Our transforms decode only the pixels they need; those of other libraries take decoded images.
        is_own = isinstance(self.transforms, TrainTransforms)
        image: Any = source if is_own else tv_tensors.Image(planar(source.pixels()))
        return *self.transforms(image, tv_tensors.Mask(mask)), source.size

    def _pasted(self, copy_paste: CropMix, crop: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Paste a part of another image into a crop."""
        other, other_labels, _ = self._crop(self.indices[int(torch.randint(len(self.indices), ()))])
        if other_labels is None or other.shape != crop.shape:
            raise UserError("data.copy_paste needs train_transforms that give crops of one size with masks.")
        assert self.class_pixels is not None
        has_background = self.dataset.classes.names[0] == "background"
        return copy_paste((crop, labels), (other, other_labels), self.class_pixels, has_background=has_background)


class EvalView(Dataset[Sample | None]):
    """Apply the evaluation transforms to some images of a data set; the position None holds nothing."""

    def __init__(self, dataset: Dataset[Sample], indices: Sequence[int], transforms: Transforms) -> None:
        self.dataset, self.indices, self.transforms = dataset, indices, transforms

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int | None) -> Sample | None:
        if position is None:
            return None
        sample = self.dataset[self.indices[position]]
        image, mask = self.transforms(sample.image, sample.mask)
        return sample._replace(image=image, mask=mask)


class PredictView(Dataset[Sample | Unreadable | None]):
    """Return the samples of a view, or for an image that cannot be read what is wrong with it."""

    def __init__(self, view: EvalView) -> None:
        self.view, self.dataset = view, view.dataset

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, position: int | None) -> Sample | Unreadable | None:
        if position is None:
            return None
        try:
            return self.view[position]
        except (OSError, ValueError) as error:
            names: Any = self.view.dataset
            return Unreadable(names.names[self.view.indices[position]], str(error))
