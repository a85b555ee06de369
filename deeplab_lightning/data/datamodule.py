"""Build the data loaders of a data set and its folds."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from deeplab_lightning.data.batch import Batch, Sample, collate, collate_by_size, collate_readable
from deeplab_lightning.data.check import (
    Part,
    extra_images_held_out,
    find_warnings,
    images_by_digest,
    single_class_problem,
    trained_images_warning,
)
from deeplab_lightning.data.classes import ClassTable, class_mismatch
from deeplab_lightning.data.datasets import ImageFolderDataset, SegmentationDataset
from deeplab_lightning.data.datasets.joined import JoinedDataset
from deeplab_lightning.data.fold_split import SplitDataModule
from deeplab_lightning.data.folds import FoldMethod
from deeplab_lightning.data.groups import Grouping
from deeplab_lightning.data.image_cache import CacheMode, DecodedDataset
from deeplab_lightning.data.image_format import PLAIN, ImageFormat, measure_channels
from deeplab_lightning.data.images import MAX_PIXELS
from deeplab_lightning.data.loaders import (
    EpochSampler,
    EvalSampler,
    EvalView,
    PredictView,
    ResumableLoader,
    TrainView,
    Transforms,
    repeat_rare_images,
)
from deeplab_lightning.data.mixing import CopyPaste, CropMix
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.data.transforms import EvalTransforms, TrainTransforms
from deeplab_lightning.errors import DataError, UserError

_MEASURED_IMAGES = 200
_EXTRA = "data.extra_datasets"


class SegmentationDataModule(SplitDataModule):
    """Provide the data loaders of one fold, or of a data set's official split.

    Every image and mask is read once before the first training and the result is cached, so that a faulty
    file stops the run at its start and not in a later epoch.

    Args:
        dataset: The images that are split into folds, or the training part of an official split.
        n_folds: Number of folds, at least 2. Used with `split: folds`.
        fold: The validation fold, 0-based; the other folds are for training. Null trains on all images,
            without validation.
        split_seed: Seed of the split, independent of the seed of the training.
        split: `folds` splits `dataset`; `official` trains on `dataset` and validates on `val_dataset`.
        fold_method: Method of assigning images to folds: `balanced`, `iterstrat`, `random` or `group`, see
            `stratified_folds`.
        groups: Groups of images that stay in one fold: `PatternGroups` (by file names), `TableGroups` (by a
            CSV column) or `DuplicateGroups` (near-duplicates); null for no groups.
        exact_areas: Whether folds balance the areas in the masks used for training, for which every file is
            read once. False takes the areas of the annotations, where overlaps count for each object, and
            opens no file.
        fold_file: A `folds.csv` of an earlier run whose folds are used; null to split.
        val_dataset: Validation part of an official split.
        test_dataset: Data set that `test` evaluates; the validation part if null.
        extra_datasets: Further data sets, such as pseudo-labels, whose images every fold trains on and none validates.
        classes: Class table if there is no data set (predict takes it from the checkpoint).
        predict_images: Folders, image files or `.txt` lists that `predict` reads.
        batch_size: Number of images per step and device.
        eval_batch_size: Number of images per evaluation step and device; `batch_size` if null. Images of
            different sizes are evaluated separately, so the metrics do not depend on it.
        num_workers: Number of processes per device that read images; 0 reads in the training process.
        train_transforms: Transforms of training images; `TrainTransforms()` if null.
        eval_transforms: Transforms of all other images; `EvalTransforms()` if null.
        cache: Place of decoded images and masks: `ram` keeps them in memory, once per process, `disk` in
            files that all processes, folds and later runs share; the size is printed first. `none` reads the
            files each time. The crops are the same. A cache helps most with large images and small crops,
            where decoding takes most of the time.
        seed: Seed of the order and the augmentation of training images. They depend on seed, epoch and
            image only, not on the number of workers.
        allow_single_class: Whether to train where at most one class has pixels, which is nearly always a mistake in the
            class table.
        image_format: Channels of the images, and the values of files of more than 8 bits; RGB of 8 bits if null.
        copy_paste: Pastes parts of other training images into crops (`CopyPaste`, `ClassMix`, `CutMix`); null pastes
            nothing.
        repeat_rare: Share t of the training images, in [0, 1]: images with a class that is in fewer of them, in the
            share f, are shown sqrt(t / f) times per epoch, rounded up (Gupta et al. 2019); 0 shows each once.

    Raises:
        ValueError: If the fold is outside [0, n_folds), an official split has no `val_dataset`, or there is
            neither a data set nor a class table.
        DataError: If the class tables of the data sets differ.
    """

    def __init__(
        self,
        dataset: SegmentationDataset | None = None,
        n_folds: int = 5,
        *,
        fold: int | None = 0,
        split_seed: int = 0,
        split: Literal["folds", "official"] = "folds",
        fold_method: FoldMethod = "balanced",
        groups: Grouping | None = None,
        exact_areas: bool = True,
        fold_file: str | None = None,
        val_dataset: SegmentationDataset | None = None,
        test_dataset: SegmentationDataset | None = None,
        extra_datasets: list[SegmentationDataset] | None = None,
        classes: ClassTable | None = None,
        predict_images: list[str] | str | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        train_transforms: Transforms | None = None,
        eval_transforms: Transforms | None = None,
        cache: CacheMode = "none",
        seed: int = 0,
        allow_single_class: bool = False,
        image_format: ImageFormat | None = None,
        copy_paste: CopyPaste | CropMix | None = None,  # the first is that of options without a class
        repeat_rare: float = 0.0,
    ) -> None:
        super().__init__()
        if split == "folds" and (n_folds < 2 or (fold is not None and not 0 <= fold < n_folds)):
            raise UserError(f"fold must be null or in [0, n_folds) with n_folds >= 2, got {fold} of {n_folds}.")
        if split == "official" and dataset is not None and val_dataset is None:
            raise UserError("split: official needs data.val_dataset, got null. Set it, or split: folds.")
        if dataset is None and classes is None:
            raise UserError("data.dataset is required, got null. Only predict with a checkpoint works without it.")
        self.dataset, self.val_dataset, self.test_dataset = dataset, val_dataset, test_dataset
        self.extra_datasets = extra_datasets or []
        for key, part in self._named_datasets().items():
            if not isinstance(part, SegmentationDataset):
                raise UserError(
                    f"{key} must be a SegmentationDataset, got a {type(part).__name__}: to train on some of the "
                    "images, give a list_file or an own fold_file, and give several data sets as extra_datasets."
                )
        self.split, self.n_folds, self.fold = split, n_folds, fold
        self.split_seed, self.fold_method, self.fold_file = split_seed, fold_method, fold_file
        self.exact_areas = exact_areas
        self.groups, self.predict_images, self.max_predict_pixels = groups, predict_images, MAX_PIXELS
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.cache, self.seed = num_workers, cache, seed
        self.train_transforms = train_transforms or TrainTransforms()
        self.eval_transforms = eval_transforms or EvalTransforms()
        self._caches: dict[int, DecodedDataset] = {}
        self._classes = classes if dataset is None else dataset.classes
        if not 0 <= repeat_rare <= 1:
            raise UserError(f"data.repeat_rare must be a share of the images in [0, 1], got {repeat_rare}.")
        self.copy_paste, self.repeat_rare = copy_paste, repeat_rare
        self.allow_single_class = allow_single_class
        self.image_format = image_format or PLAIN
        for part in self._named_datasets().values():
            part.image_format = self.image_format
        if mismatch := class_mismatch({key: part.classes for key, part in self._named_datasets().items()}):
            raise DataError(mismatch)

    @property
    def in_channels(self) -> int:
        """Return C, the number of channels of the images."""
        return self.image_format.channels

    def channel_statistics(self) -> tuple[list[float], list[float]] | None:
        """Return mean and standard deviation of each channel on the scale of 0-1.

        They are those of the image format, or of up to 200 training images, evenly spaced in their order; None for RGB
        of 8 bits, which the backbone's ImageNet weights have values for.
        """
        if self.image_format.mean is not None and self.image_format.std is not None:
            return self.image_format.mean, self.image_format.std
        if self.image_format.is_plain or self.dataset is None:
            return None
        training_set, indices = self.training_set, self._train_indices()
        chosen = np.linspace(0, len(indices) - 1, min(_MEASURED_IMAGES, len(indices))).round().astype(int)
        return measure_channels(training_set.read_image(indices[place]) for place in chosen.tolist())

    def class_pixels(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count the pixels of the classes in the training images.

        Returns:
            (K,) pixels of each class, and (K,) pixels of all classes in the images that hold a class.
        """
        pixels = scan_dataset(self.training_set, is_quiet=True).pixels[self._train_indices()]  # (N, K)
        return pixels.sum(axis=0), ((pixels > 0) * pixels.sum(axis=1, keepdims=True)).sum(axis=0)

    def prepare_data(self) -> None:
        """Read every file once on one process per node, and cache the result for `setup`."""
        if self.predict_images is None:
            for dataset in self._named_datasets().values():
                problems = scan_dataset(dataset).problems
                if self.cache == "disk" and not problems:
                    self._decoded(dataset)

    def setup(self, stage: str) -> None:
        """Stop at faulty data, or list the images that are left out.

        Args:
            stage: `fit`, `validate`, `test` or `predict`; nothing is checked for `predict`.

        Raises:
            DataError: If data cannot be used, see `deeplab data check`.
        """
        if stage == "predict":
            return
        parts: dict[str, Part] = {}
        for key, dataset in self._named_datasets().items():
            statistics = scan_dataset(dataset, is_quiet=True)
            dataset.report(statistics.problems)
            if statistics.problems:  # their images were left out
                statistics = scan_dataset(dataset, is_quiet=True)
            parts[key] = Part(dataset, statistics)
            if dataset.problems:
                lines = "\n  ".join(map(str, dataset.problems))
                rank_zero_info(f"Left out of {dataset.source} (on_error: skip):\n  {lines}")
        if stage == "fit":
            held_out = {key: parts[key] for key in self.held_out_datasets()}
            for key in filter(_is_extra, parts):
                images = {digest: names[0] for digest, names in images_by_digest(parts[key]).items()}
                if leak := extra_images_held_out(key, images, held_out):
                    raise DataError(leak)
            self._warn(parts)
        elif stage == "test" and "data.test_dataset" in parts:
            for key in (key for key in parts if key not in {"data.test_dataset", "data.val_dataset"}):
                if warning := trained_images_warning(parts["data.test_dataset"], parts[key], key):
                    rank_zero_warn(warning)

    def _warn(self, parts: Mapping[str, Part]) -> None:
        """Stop where there is nothing to learn, and print the first warning about the data.

        Args:
            parts: The data sets by their keys in the configuration.

        Raises:
            DataError: If at most one class has pixels, unless `allow_single_class` is set.
        """
        nothing = single_class_problem(parts["data.dataset"]) if "data.dataset" in parts else None
        if nothing is not None and not self.allow_single_class:
            raise DataError(str(nothing))
        if not self.allow_single_class and (warning := self._validation_warning(parts)):
            rank_zero_info(f"warning about the validation: {warning}")
        folds = self.folds if self.split == "folds" and self.fold is not None and self.dataset is not None else None
        if warnings := find_warnings(parts, folds):
            others = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
            rank_zero_info(
                f"warning about the data{others}: {warnings[0]}\n"
                "`deeplab data check` with the same -c and --data options lists all of them."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Build the loader of shuffled training crops. An incomplete last batch is dropped if there are others."""
        view = self.train_view(self._joined([self._decoded(part) for part in self._training_parts()]))
        sampler = EpochSampler(view, seed=self.seed, batch_size=self.batch_size, position=self._training_position)
        return self._loader(view, sampler, collate, self.batch_size, drop_last=len(sampler) > self.batch_size)

    def train_view(self, dataset: SegmentationDataset) -> TrainView:
        """Return the augmented training images, as an epoch shows them.

        Args:
            dataset: `training_set`, or its decoded form.
        """
        transforms = self.train_transforms
        own = transforms if isinstance(transforms, TrainTransforms) else None
        needs_pixels = self.copy_paste is not None or (own is not None and own.rare_class_probability > 0)
        pixels = self.class_pixels()[0] if needs_pixels else None
        if own is not None:
            own.class_pixels = pixels
        indices = self._train_indices()
        if self.repeat_rare and indices:
            is_present = scan_dataset(self.training_set, is_quiet=True).pixels[indices] > 0  # (N, K)
            indices = repeat_rare_images(indices, is_present, self.repeat_rare)
        return TrainView(dataset, indices, transforms, self.seed, copy_paste=self.copy_paste, class_pixels=pixels)

    def _training_position(self) -> tuple[int, int] | None:
        """Return the epoch that the trainer is in and the batches of it that are done; None without a trainer.

        Asked whenever an iterator is made: in a resumed training Lightning makes the first one before it sets the
        sampler's epoch, and it never tells a loader that a checkpoint was written within an epoch.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return None
        loop: Any = self.trainer.fit_loop
        epoch, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
        if epoch.ready == epoch.processed:
            return epoch.processed, 0
        if batches.is_last_batch and batches.current.ready == batches.current.processed:
            return epoch.processed + 1, 0
        return epoch.processed, batches.current.processed

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Build the loader of the validation images; an empty list without validation."""
        if not self.has_validation:
            return []
        if self.split == "official":
            assert self.val_dataset is not None
            return self._eval_loader(self.val_dataset, range(len(self.val_dataset)))
        assert self.dataset is not None
        return self._eval_loader(self.dataset, self._fold_indices(is_validation=True))

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Build the loader of the test images, or of the validation part without a test data set.

        Raises:
            DataError: If there is neither.
        """
        if self.test_dataset is not None:
            return self._eval_loader(self.test_dataset, range(len(self.test_dataset)))
        if not self.has_validation:
            raise DataError(
                "test needs data.test_dataset or a validation part, but data.fold is null. Set one of the two."
            )
        rank_zero_info("No data.test_dataset: test evaluates the validation part.")
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Build the loader of images without masks. An image that cannot be read becomes an `Unreadable`.

        Raises:
            DataError: If `predict_images` is empty, or holds no image.
        """
        if not self.predict_images:
            raise DataError("predict needs images: set --images FOLDER (or data.predict_images).")
        sources = [self.predict_images] if isinstance(self.predict_images, str) else self.predict_images
        dataset = ImageFolderDataset(sources, self.image_format, max_pixels=self.max_predict_pixels)
        return self._eval_loader(dataset, range(len(dataset)), is_tolerant=True)

    def _named_datasets(self) -> dict[str, SegmentationDataset]:
        """Return the data sets by their keys in the configuration."""
        named = {"dataset": self.dataset, "val_dataset": self.val_dataset, "test_dataset": self.test_dataset}
        extra = {f"{_EXTRA}[{number}]": part for number, part in enumerate(self.extra_datasets)}
        return {f"data.{key}": part for key, part in named.items() if part is not None} | extra

    def held_out_datasets(self) -> dict[str, SegmentationDataset]:
        """Return the data sets of which images are validated or tested, in this fold or in another one, by their keys.

        No fold may train on copies of these images from elsewhere.
        """
        is_all_trained_on = self.split == "official" or self.fold is None
        others = {key: part for key, part in self._named_datasets().items() if not _is_extra(key)}
        return {key: part for key, part in others.items() if key != "data.dataset" or not is_all_trained_on}

    @property
    def training_set(self) -> SegmentationDataset:
        """Return `dataset`, or all images of it and of `extra_datasets`, some of which the fold trains on."""
        return self._joined(self._training_parts())

    def _training_parts(self) -> list[SegmentationDataset]:
        assert self.dataset is not None
        return [self.dataset, *self.extra_datasets]

    def _joined(self, parts: Sequence[SegmentationDataset]) -> SegmentationDataset:
        return JoinedDataset(parts) if len(parts) > 1 else parts[0]

    def _train_indices(self) -> list[int]:
        """Return the images of `training_set` that the fold trains on."""
        assert self.dataset is not None
        is_part = self.split == "folds" and self.fold is not None
        own = self._fold_indices(is_validation=False) if is_part else list(range(len(self.dataset)))
        return [*own, *range(len(self.dataset), sum(map(len, self._training_parts())))]

    def _decoded(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """Return the data set, decoded and kept as `cache` demands."""
        if self.cache == "none":
            return dataset
        if id(dataset) not in self._caches:
            num_processes = self.trainer.num_devices if self.trainer else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            cached = DecodedDataset(dataset, self.cache, num_processes=num_processes)
            rank_zero_info(
                f"data.cache: {len(cached)} decoded images of {dataset.source}, {cached.num_bytes / 1e9:.2f} GB "
                f"in {cached.place}"
            )
            cached.build()
            self._caches[id(dataset)] = cached
        return self._caches[id(dataset)]

    def _eval_loader(
        self, dataset: Dataset[Sample], indices: Sequence[int], *, is_tolerant: bool = False
    ) -> DataLoader[Batch]:
        if isinstance(dataset, SegmentationDataset):
            dataset = self._decoded(dataset)
        strict = EvalView(dataset, list(indices), self.eval_transforms)
        view = PredictView(strict) if is_tolerant else strict
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        sampler = EvalSampler(view) if is_distributed else None
        collate_fn = collate_readable if is_tolerant else collate_by_size
        return self._loader(view, sampler, collate_fn, self.eval_batch_size, drop_last=False)

    def _loader(
        self, view: Dataset[Any], sampler: Any, collate_fn: Any, batch_size: int, *, drop_last: bool
    ) -> DataLoader[Batch]:
        return ResumableLoader(
            view,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(self.seed),  # else each iterator draws from the global one
        )


def _is_extra(key: str) -> bool:
    """Check whether a key is that of one of the `extra_datasets`."""
    return key.startswith(_EXTRA)
