"""Data set and folds -> loaders."""

import os
import random
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import tv_tensors

from deeplab_lightning.data.batch import Batch, Sample, collate, collate_by_size
from deeplab_lightning.data.cache import content_key
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import ImageFolderDataset, SegmentationDataset
from deeplab_lightning.data.folds import FoldMethod, stratified_folds
from deeplab_lightning.data.folds.balance import Balance, fold_balance
from deeplab_lightning.data.folds.table import FoldTable
from deeplab_lightning.data.groups import Grouping
from deeplab_lightning.data.image_cache import CacheMode, DecodedDataset
from deeplab_lightning.data.images import planar
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.data.transforms import EvalTransforms, TrainTransforms
from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.tables import csv_text

Transforms = Callable[[Any, Any], tuple[Tensor, Tensor | None]]


class SegmentationDataModule(L.LightningDataModule):
    """Loaders of one fold, or of a data set's own split.

    Every image and mask is read once before the first training (the result is remembered), so that
    a bad file stops the run at its start and not in a later epoch.

    Args:
        dataset: The pictures that are split into folds, or the training part of an official split.
        n_folds: Number of folds, at least 2. Used with `split: folds`.
        fold: The fold that validates, 0-based; the others train. Null trains on everything, without
            validation.
        split_seed: Seed of the split, apart from the seed of the training.
        split: `folds` splits `dataset`; `official` trains on `dataset` and validates on `val_dataset`.
        fold_method: How images are assigned to folds, see `stratified_folds`.
        groups: What stays in one fold: `PatternGroups` (of file names), `TableGroups` (a CSV column) or
            `DuplicateGroups` (pictures that look alike); null for no groups.
        exact_areas: Whether folds balance the areas of the masks as trained, for which every file is read
            once; false takes those of the annotations, overlaps counted twice, and opens nothing.
        fold_file: A `folds.csv` of an earlier run to take the folds from, instead of splitting.
        val_dataset: Validation part of an official split.
        test_dataset: What `test` evaluates; the validation part if null.
        classes: Class table where there is no data set (predict takes it from the checkpoint).
        predict_images: What `predict` reads: folders, picture files, `.txt` lists.
        batch_size: Pictures per step and device.
        eval_batch_size: Pictures per evaluation step and device; `batch_size` if null. Pictures of
            different sizes are evaluated apart, so the figures do not depend on it.
        num_workers: Processes per device that read pictures; 0 reads in the training process.
        train_transforms: Applied to training pictures; `TrainTransforms()` if null.
        eval_transforms: Applied to all others; `EvalTransforms()` if null.
        cache: Keep pictures and masks decoded: `ram` in memory, once per process, `disk` in files that all
            processes, folds and later runs share; the size is announced before. `none` reads the files.
            The crops are the same. It pays where decoding is the larger part: large pictures, small crops.
        seed: Seed of the order and the augmentation of training pictures. Each depends on seed, epoch
            and image only, whatever the number of workers.

    Raises:
        ValueError: For a fold outside [0, n_folds), or an official split without `val_dataset`.
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
        classes: ClassTable | None = None,
        predict_images: list[str] | str | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        train_transforms: Transforms | None = None,
        eval_transforms: Transforms | None = None,
        cache: CacheMode = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if split == "folds" and (n_folds < 2 or (fold is not None and not 0 <= fold < n_folds)):
            raise UserError(f"fold must be null or in [0, n_folds) with n_folds >= 2, got {fold} of {n_folds}.")
        if split == "official" and dataset is not None and val_dataset is None:
            raise UserError("split: official needs data.val_dataset, got null. Set it, or split: folds.")
        if dataset is None and classes is None:
            raise UserError("data.dataset is required; only predict with a checkpoint works without one.")
        self.dataset, self.val_dataset, self.test_dataset = dataset, val_dataset, test_dataset
        self.split, self.n_folds, self.fold = split, n_folds, fold
        self.split_seed, self.fold_method, self.fold_file = split_seed, fold_method, fold_file
        self.exact_areas = exact_areas
        self.groups, self.predict_images = groups, predict_images
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.cache, self.seed = num_workers, cache, seed
        self.train_transforms = train_transforms or TrainTransforms()
        self.eval_transforms = eval_transforms or EvalTransforms()
        self._caches: dict[int, DecodedDataset] = {}
        self._classes = classes if dataset is None else dataset.classes
        for name, other in (("val_dataset", val_dataset), ("test_dataset", test_dataset)):
            if other is not None and other.classes.names != self.classes.names:
                raise DataError(
                    f"data.{name} has the classes {list(other.classes.names)}, but data.dataset has "
                    f"{list(self.classes.names)}. Give both the same class table or class_map."
                )

    @property
    def classes(self) -> ClassTable:
        """Names, colours and ids of the classes."""
        assert self._classes is not None
        return self._classes

    @property
    def num_classes(self) -> int:
        """K, without void."""
        return self.classes.num_classes

    @property
    def has_validation(self) -> bool:
        """Whether anything is held out."""
        return self.split == "official" or self.fold is not None

    def prepare_data(self) -> None:
        """Read every file once, on one process per node; `setup` finds the result in the cache."""
        if self.predict_images is None:
            for dataset in self._datasets():
                problems = scan_dataset(dataset).problems
                if self.cache == "disk" and not problems:
                    self._decoded(dataset)

    def setup(self, stage: str) -> None:
        """Stop at bad data, then assign the folds.

        Raises:
            DataError: For data that cannot be used, see `deeplab data check`.
        """
        if stage == "predict":
            return
        for dataset in self._datasets():
            problems = scan_dataset(dataset, is_quiet=True).problems
            dataset.report(problems)
            if dataset.problems:
                lines = "\n  ".join(map(str, dataset.problems))
                rank_zero_info(f"Left out of {dataset.source} (on_error: skip):\n  {lines}")

    @property
    def folds(self) -> dict[str, int]:
        """Image key -> validation fold of `dataset`.

        Raises:
            DataError: If `fold_file` is of other images, or an image has no group.
        """
        return self.fold_table.folds

    @cached_property
    def fold_table(self) -> FoldTable:
        """Folds and groups, from `fold_file` or made now."""
        assert self.dataset is not None
        names = self.dataset.names
        labels = None if self.groups is None else self.groups.labels(self.dataset)
        if self.fold_file is not None:
            dropped = [name for problem in self.dataset.problems for name in problem.images]
            table = FoldTable.read(Path(self.fold_file), names, self.n_folds, dropped=dropped)
            return table if labels is None else table.with_groups(dict(zip(names, labels, strict=True)))
        folds = stratified_folds(
            *self.balance_features(), self.n_folds, groups=labels, seed=self.split_seed, method=self.fold_method
        )
        return FoldTable(
            dict(zip(names, folds.tolist(), strict=True)), dict(zip(names, labels or [""] * len(names), strict=True))
        )

    @property
    def foreground_names(self) -> Sequence[str]:
        """Names of the classes that folds balance: all but `background`."""
        names = self.classes.names
        return names[1:] if names[0] == "background" else names

    def balance_features(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What folds balance: (N, K) objects, and (N, K) shares of the picture, of the foreground classes."""
        assert self.dataset is not None
        first = self.num_classes - len(self.foreground_names)
        if self.exact_areas:
            statistics = scan_dataset(self.dataset, is_quiet=True)
            return statistics.objects[:, first:], statistics.areas[:, first:]
        objects, areas = zip(*map(self.dataset.annotated, range(len(self.dataset))), strict=True)
        return np.array(objects)[:, first:], np.array(areas)[:, first:]

    def balance(self) -> Balance:
        """How even the folds are."""
        return fold_balance(*self.balance_features(), list(self.folds.values()), self.n_folds)

    def balance_csv(self) -> str | None:
        """The evenness of the folds as CSV, a row per fold and class; None for an official split."""
        return self.balance().to_csv(self.foreground_names) if self.split == "folds" else None

    def folds_csv(self) -> str:
        """The split as CSV with the columns image, group, fold: what a later run reads back."""
        if self.split == "folds":
            return self.fold_table.to_csv()
        parts = (("train", self.dataset), ("val", self.val_dataset))
        rows = [[image, "", part] for part, dataset in parts for image in (dataset.names if dataset else ())]
        return csv_text([["image", "group", "fold"], *rows])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled crops; the last batch is dropped if it is not full and not the only one."""
        assert self.dataset is not None
        indices = range(len(self.dataset))
        if self.split == "folds" and self.fold is not None:
            indices = self._fold_indices(is_validation=False)  # type: ignore[assignment]
        view = _TrainView(self._decoded(self.dataset), list(indices), self.train_transforms, self.seed)
        sampler = EpochSampler(view, seed=self.seed)
        return self._loader(view, sampler, collate, self.batch_size, drop_last=len(sampler) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """The held-out pictures; an empty list if nothing is held out."""
        if not self.has_validation:
            return []
        if self.split == "official":
            assert self.val_dataset is not None
            return self._eval_loader(self.val_dataset, range(len(self.val_dataset)))
        assert self.dataset is not None
        return self._eval_loader(self.dataset, self._fold_indices(is_validation=True))

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """The test pictures, or the validation part where there are none."""
        if self.test_dataset is not None:
            return self._eval_loader(self.test_dataset, range(len(self.test_dataset)))
        if not self.has_validation:
            raise DataError("test needs data.test_dataset or a validation part; data.fold is null.")
        rank_zero_info("No data.test_dataset: test evaluates the validation part.")
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Pictures without masks."""
        if not self.predict_images:
            raise DataError("predict needs pictures: --images FOLDER (or data.predict_images).")
        sources = [self.predict_images] if isinstance(self.predict_images, str) else self.predict_images
        dataset = ImageFolderDataset(sources)
        return self._eval_loader(dataset, range(len(dataset)))

    def _datasets(self) -> list[SegmentationDataset]:
        return [d for d in (self.dataset, self.val_dataset, self.test_dataset) if d is not None]

    def _fold_indices(self, *, is_validation: bool) -> list[int]:
        assert self.dataset is not None
        return [i for i, name in enumerate(self.dataset.names) if (self.folds[name] == self.fold) == is_validation]

    def _decoded(self, dataset: SegmentationDataset) -> SegmentationDataset:
        """The data set as `cache` says."""
        if self.cache == "none":
            return dataset
        if id(dataset) not in self._caches:
            num_processes = self.trainer.num_devices if self.trainer else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            cached = DecodedDataset(dataset, self.cache, num_processes=num_processes)
            rank_zero_info(
                f"data.cache: {len(cached)} decoded pictures of {dataset.source}, {cached.num_bytes / 1e9:.2f} GB "
                f"in {cached.place}"
            )
            cached.build()
            self._caches[id(dataset)] = cached
        return self._caches[id(dataset)]

    def _eval_loader(self, dataset: Dataset[Sample], indices: Sequence[int]) -> DataLoader[Batch]:
        if isinstance(dataset, SegmentationDataset):
            dataset = self._decoded(dataset)
        view = _EvalView(dataset, list(indices), self.eval_transforms)
        # DistributedSampler would repeat pictures to make the processes even, and count them twice.
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        sampler = UnrepeatedDistributedSampler(view, shuffle=False) if is_distributed else None
        return self._loader(view, sampler, collate_by_size, self.eval_batch_size, drop_last=False)

    def _loader(
        self, view: Dataset[Sample], sampler: Any, collate_fn: Any, batch_size: int, *, drop_last: bool
    ) -> DataLoader[Batch]:
        return DataLoader(
            view,  # type: ignore[arg-type]
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


class EpochSampler(DistributedSampler[Sample]):
    """Shuffles by (seed, epoch) alone, so that a resumed run sees what an uninterrupted one would.

    Yields (epoch, position) instead of position: workers that live through the epochs learn the epoch
    from it. Lightning calls `set_epoch`, and leaves a DistributedSampler as it is.
    """

    def __init__(self, dataset: Dataset[Sample], *, seed: int) -> None:
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        num_replicas, rank = (None, None) if is_distributed else (1, 0)
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)

    def __iter__(self) -> Any:
        return ((self.epoch, position) for position in super().__iter__())


class _TrainView(Dataset[Sample]):
    """Some pictures of a data set, augmented with randomness from (seed, epoch, image)."""

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int], transforms: Transforms, seed: int) -> None:
        self.dataset, self.indices, self.transforms, self.seed = dataset, indices, transforms, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        index = self.indices[position]
        name, picture, mask = self.dataset.names[index], self.dataset.open_image(index), self.dataset.read_mask(index)
        # Ours decide what is decoded; those of other libraries take pixels.
        is_own = isinstance(self.transforms, TrainTransforms)
        image: Any = picture if is_own else tv_tensors.Image(planar(picture.pixels()))
        seed = int(content_key(self.seed, epoch, name)[:15], 16)
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond, for the GPUs' sake
            random.seed(seed)  # for transforms of other libraries
            crop, labels = self.transforms(image, tv_tensors.Mask(mask))
        random.setstate(python_state)
        return Sample(crop, labels, name, picture.size)


class _EvalView(Dataset[Sample]):
    """Some pictures of a data set through the evaluation transforms."""

    def __init__(self, dataset: Dataset[Sample], indices: Sequence[int], transforms: Transforms) -> None:
        self.dataset, self.indices, self.transforms = dataset, indices, transforms

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        sample = self.dataset[self.indices[position]]
        image, mask = self.transforms(sample.image, sample.mask)
        return sample._replace(image=image, mask=mask)
