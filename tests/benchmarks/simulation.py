"""Draw K-fold experiments of known quality: the confusion matrices of images by models that differ by chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.sparse import csr_matrix

from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.metrics.iou import nan_mean, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_PIXELS = 50_000  # of an image
_LARGE = 3000  # images to compute expectations with


@dataclass(frozen=True)
class World:
    """Describe data and trainings.

    The quality of a class in an image is a logit: the class's own, the image's difficulty, which all models share, a
    deviation of the model in this image, and the effect of the training on the class.

    Args:
        num_images: Number of images N.
        n_folds: Number of folds K; 1 for one training on other images.
        presence: (C,) share of the images that show each class.
        fold_shares: (K,) shares of the images that the folds hold out; equal ones if empty.
        seed_sd: Standard deviation of the mIoU of one training over its repetitions.
        class_scale: (C,) effects of a training on the classes, relative to each other; equal ones if empty.
        image_sd: Standard deviation of the model's deviation in an image, as a logit.
        group_sd: Standard deviation of the model's deviation in a group of images, as a logit.
        group_size: Images of a group; folds hold out whole groups.
        shared: Correlation of the effects of a recipe's K trainings, as of one seed for all of them, in [0, 1].
        of_images: Share of the effects' variance that comes from the training images, each of which adds the same
            amount to every training that it is part of, in [0, 1].
        data_seed: Seed of the images and their folds, which are then the same in all repetitions; None for new ones.
    """

    num_images: int = 100
    n_folds: int = 5
    presence: Sequence[float] = (1.0, 0.9, 0.7, 0.5, 0.5)
    fold_shares: Sequence[float] = ()
    seed_sd: float = 0.007
    class_scale: Sequence[float] = ()
    image_sd: float = 0.1
    group_sd: float = 0.0
    group_size: int = 1
    shared: float = 0.0
    of_images: float = 0.0
    data_seed: int | None = None

    @property
    def num_classes(self) -> int:
        """Return the number of classes C."""
        return len(self.presence)

    @property
    def names(self) -> list[str]:
        """Return the N image keys."""
        return [f"{index:04d}" for index in range(self.num_images)]

    @property
    def groups(self) -> list[str]:
        """Return the (N,) groups of the images."""
        return [f"{index // self.group_size:04d}" for index in range(self.num_images)]

    def experiments(self, rng: np.random.Generator, differences: Sequence[float]) -> list[CrossValidation]:
        """Draw images, folds and the trainings of one recipe per difference.

        Args:
            rng: Generator.
            differences: True mIoU of each recipe, minus that of a recipe whose difference is 0.
        """
        data_rng = rng if self.data_seed is None else np.random.default_rng(self.data_seed)
        truth, difficulty = self._images(data_rng, self.num_images)
        folds = self._folds(data_rng)
        made = []
        for index, difference in enumerate(differences):
            effects = self._effects(rng, folds)[folds] + self._shift(difference)
            made.append(self._experiment(f"e{index}", self._counts(rng, truth, difficulty, effects), folds))
        return made

    @cached_property
    def logit_sd(self) -> Floats:
        """Return the (C,) effects of a training as logits, whose standard deviation in mIoU is `seed_sd`."""
        scale = np.asarray(self.class_scale or np.ones(self.num_classes))
        step = 0.1 * np.diag(scale)
        gradient = np.array([self._expected_miou(row) - self._expected_miou(-row) for row in step]) / 0.2
        return np.asarray(scale * self.seed_sd / np.sqrt((gradient**2).sum()))

    def _shift(self, difference: float) -> float:
        """Return the logit that all classes must gain for a difference of mIoU."""
        if difference == 0:
            return 0.0
        if difference not in self._shifts:
            base = self._expected_miou(np.zeros(self.num_classes))
            self._shifts[difference] = float(
                brentq(lambda x: self._expected_miou(np.full(self.num_classes, x)) - base - difference, -3, 3)
            )
        return self._shifts[difference]

    @cached_property
    def _shifts(self) -> dict[float, float]:
        return {}

    def _expected_miou(self, effects: Floats) -> float:
        """Compute the mIoU of many images."""
        rng = np.random.default_rng(0)
        truth, difficulty = self._images(rng, _LARGE)
        matrices = truth[:, :, None] * self._chances(rng, difficulty, effects)
        return float(nan_mean(truth_iou(matrices.sum(axis=0))))

    def _images(self, rng: np.random.Generator, count: int) -> tuple[Ints, Floats]:
        """Draw the (count, C) pixels of each class and the (count, C) difficulty of images."""
        is_present = rng.random((count, self.num_classes)) < np.asarray(self.presence)
        is_present[:, 0] = True
        is_present[rng.integers(0, count, self.num_classes), np.arange(self.num_classes)] = True  # a class is somewhere
        area = is_present * rng.lognormal(0, 0.7, is_present.shape)
        truth = np.rint(_PIXELS * area / area.sum(axis=1, keepdims=True)).astype(np.int64)
        return truth, 1.5 + rng.normal(0, 0.5, (count, 1)) + rng.normal(0, 0.3, (count, self.num_classes))

    def _folds(self, rng: np.random.Generator) -> Ints:
        """Draw the (N,) folds of the images, of whole groups."""
        num_groups = -(-self.num_images // self.group_size)
        shares = np.asarray(self.fold_shares or np.full(self.n_folds, 1 / self.n_folds))
        ends = np.rint(np.cumsum(shares) * num_groups)
        of_group = rng.permutation(np.searchsorted(ends, np.arange(num_groups), side="right"))
        return np.asarray(np.repeat(of_group, self.group_size)[: self.num_images])

    def _effects(self, rng: np.random.Generator, folds: Ints) -> Floats:
        """Draw the (K, C) effects of the trainings of one recipe, as logits."""
        k, c = self.n_folds, self.num_classes
        common, own = rng.normal(size=(1, c)), rng.normal(size=(k, c))
        effects = self.shared**0.5 * common + (1 - self.shared) ** 0.5 * own
        if self.of_images:
            is_trained_on = folds != np.arange(k)[:, None]  # (K, N)
            of_images = is_trained_on @ rng.normal(size=(self.num_images, c))
            of_images /= np.sqrt(is_trained_on.sum(axis=1, keepdims=True))
            effects = (1 - self.of_images) ** 0.5 * effects + self.of_images**0.5 * of_images
        return np.asarray(effects * self.logit_sd)

    def _chances(self, rng: np.random.Generator, difficulty: Floats, effects: Floats | float) -> Floats:
        """Draw the (count, C, C) probabilities of the predictions of pixels of each class."""
        count, c = difficulty.shape
        own = rng.normal(0, self.image_sd, (count, c)) if self.image_sd else 0.0
        if self.group_sd:
            of_groups = rng.normal(0, self.group_sd, (-(-count // self.group_size), c))
            own = own + np.repeat(of_groups, self.group_size, axis=0)[:count]
        right = 1 / (1 + np.exp(-(difficulty + own + effects)))
        confusion = np.tile(np.asarray(self.presence), (c, 1)) * (1 - np.eye(c))
        confusion /= confusion.sum(axis=1, keepdims=True)
        return np.asarray(right[..., None] * np.eye(c) + (1 - right[..., None]) * confusion)

    def _counts(self, rng: np.random.Generator, truth: Ints, difficulty: Floats, effects: Floats) -> Ints:
        """Draw the (N, C, C) confusion matrices of the images."""
        return np.asarray(rng.multinomial(truth, self._chances(rng, difficulty, effects)))

    def _experiment(self, name: str, counts: Ints, folds: Ints) -> CrossValidation:
        images = PerImageConfusion(self.names, csr_matrix(counts.reshape(len(counts), -1)))
        return CrossValidation(
            name=name,
            class_names=[f"class {index}" for index in range(self.num_classes)],
            folds=list(range(self.n_folds)),
            n_folds=self.n_folds,
            matrices=np.stack([counts[folds == fold].sum(axis=0) for fold in range(self.n_folds)]),
            images=images,
            fold_of=dict(zip(self.names, folds.tolist(), strict=True)),
            epoch="last",
        )
