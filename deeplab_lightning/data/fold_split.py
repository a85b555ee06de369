"""Split a data set into folds, and keep the folds of a run and its checkpoints."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from deeplab_lightning.data.check import Part, validation_warning
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.digest import DIGEST_LENGTH, is_other_data
from deeplab_lightning.data.folds import FoldMethod, stratified_folds
from deeplab_lightning.data.folds.balance import Balance, fold_balance
from deeplab_lightning.data.folds.table import FoldTable
from deeplab_lightning.data.groups import Grouping
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.tables import csv_text, read_csv_text

SPLIT_KEYS = ("n_folds", "split_seed", "fold_method", "fold")
"""Settings of a split that checkpoints and exported files hold."""
MAYBE_TRAINED = "Images that it was trained on may be evaluated."
"""What a validation of other images than a checkpoint's may mean."""


class SplitDataModule(L.LightningDataModule):
    """Hold the folds of a data set, or its official split.

    It is a base of `SegmentationDataModule`, which explains the settings and builds the loaders.
    """

    dataset: SegmentationDataset | None
    val_dataset: SegmentationDataset | None
    split: Literal["folds", "official"]
    n_folds: int
    fold: int | None
    split_seed: int
    fold_method: FoldMethod
    fold_file: str | None
    groups: Grouping | None
    exact_areas: bool
    _classes: ClassTable | None

    @property
    def classes(self) -> ClassTable:
        """Return the class table: names, colours and ids of the classes."""
        assert self._classes is not None
        return self._classes

    @property
    def num_classes(self) -> int:
        """Return K, the number of classes without void."""
        return self.classes.num_classes

    @property
    def has_validation(self) -> bool:
        """Check whether there are validation images."""
        return self.split == "official" or self.fold is not None

    @property
    def folds(self) -> dict[str, int]:
        """Return the validation fold (0-based) of each image in `dataset` by image key.

        Raises:
            DataError: If `fold_file` does not match the data set, or an image has no group.
        """
        return self.fold_table.folds

    @cached_property
    def fold_table(self) -> FoldTable:
        """Return the folds and groups of `dataset`.

        They are read from `fold_file`, or computed if it is null.

        Raises:
            DataError: If `fold_file` does not match the data set, or an image has no group.
        """
        assert self.dataset is not None
        names = self.dataset.names
        labels = None if self.groups is None else self.groups.labels(self.dataset)
        if self.fold_file is not None:
            dropped = [name for problem in self.dataset.problems for name in problem.images]
            table = FoldTable.read(Path(self.fold_file), names, self.n_folds, dropped=dropped)
            if labels is not None:
                return table.with_groups(dict(zip(names, labels, strict=True)))
            table.require_whole_groups(self.fold_file)
            return table
        folds = stratified_folds(
            *self.balance_features(), self.n_folds, groups=labels, seed=self.split_seed, method=self.fold_method
        )
        return FoldTable(
            dict(zip(names, folds.tolist(), strict=True)), dict(zip(names, labels or [""] * len(names), strict=True))
        )

    @property
    def foreground_names(self) -> Sequence[str]:
        """Return the names of the classes that folds balance: all without a leading class `background`.

        They are the columns of `balance_features()` and of `balance()`.
        """
        names = self.classes.names
        return names[1:] if names[0] == "background" else names

    def balance_features(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Compute the values that folds balance: objects and area of each foreground class in each image.

        With `exact_areas`, they come from a scan of all masks; otherwise from the annotations alone, where
        overlaps count for each object and no file is opened. They are the first two arguments of
        `stratified_folds` and `fold_balance`.

        Returns:
            (N, F) number of objects, and (N, F) area as a fraction of the image, where N is the number of
            images in `dataset` and F the number of foreground classes, see `foreground_names`.

        Raises:
            DataError: If `exact_areas` is false and the data set has masks but no annotations.
        """
        assert self.dataset is not None
        first = self.num_classes - len(self.foreground_names)
        if self.exact_areas:
            statistics = scan_dataset(self.dataset, is_quiet=True)
            return statistics.objects[:, first:], statistics.areas[:, first:]
        objects, areas = zip(*map(self.dataset.measure_annotations, range(len(self.dataset))), strict=True)
        return np.array(objects)[:, first:], np.array(areas)[:, first:]

    def balance(self) -> Balance:
        """Measure the balance of the folds."""
        return fold_balance(*self.balance_features(), list(self.folds.values()), self.n_folds)

    def balance_csv(self) -> str | None:
        """Format the balance of the folds as CSV, one row per fold and class; None for an official split."""
        return self.balance().to_csv(self.foreground_names) if self.split == "folds" else None

    def folds_csv(self) -> str:
        """Format the split as CSV with the columns image, group, fold, which a later run can read."""
        if self.split == "folds":
            return self.fold_table.to_csv()
        parts = (("train", self.dataset), ("val", self.val_dataset))
        rows = [[image, "", part] for part, dataset in parts for image in (dataset.names if dataset else ())]
        return csv_text([["image", "group", "fold"], *rows])

    def state_dict(self) -> dict[str, Any]:
        """Return the folds for a checkpoint, so that it validates on the same images wherever it is."""
        if self.dataset is None:
            return {}
        digest = {"data_digest": self.data_digest}
        if self.split != "folds":
            return digest
        return {"folds": self._compressed_folds, "fold": self.fold, **self._split_settings, **digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use the folds of a checkpoint, unless other ones are asked for; say so where images may have been trained on.

        A training that goes on is told if images or labels have changed.

        Raises:
            DataError: If images were added to the data set since, or taken away.
        """
        if self.dataset is None:
            return
        goes_on = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if goes_on and is_other_data(state_dict.get("data_digest"), self.data_digest):
            rank_zero_warn(
                "images or labels have changed since the checkpoint was written; the training goes on with these."
            )
        if self.split != "folds" or "folds" not in state_dict:
            self._warn_of_other_data(state_dict)
            return
        rows = read_csv_text(zlib.decompress(state_dict["folds"]).decode())
        if any(state_dict[key] != value for key, value in self._split_settings.items()):
            rank_zero_warn(f"another split than the checkpoint's is asked for. {MAYBE_TRAINED}")
        elif not {row["image"] for row in rows} & set(self.dataset.names):
            rank_zero_info("The checkpoint was trained on other images; these are split anew.")
        else:
            self._use_folds(rows, state_dict["fold"])
            self._warn_of_other_data(state_dict)

    def _warn_of_other_data(self, state_dict: dict[str, Any]) -> None:
        """Say that a validation is of other data than those of the training."""
        is_validation = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        if is_validation and is_other_data(state_dict.get("data_digest"), self.data_digest):
            rank_zero_warn(
                "images or labels have changed since the training, or others are given: its figures are of other data."
            )

    def _use_folds(self, rows: list[dict[str, str]], fold: int | None) -> None:
        """Use the folds of a checkpoint that held out a fold, unless there is a `fold_file`."""
        assert self.dataset is not None
        dropped = [name for problem in self.dataset.problems for name in problem.images]
        table = FoldTable.of_rows(
            rows, "the checkpoint's fold table", self.dataset.names, self.n_folds, dropped=dropped
        )
        if self.fold != fold:
            rank_zero_warn(f"the checkpoint held out fold {fold}, not {self.fold}. {MAYBE_TRAINED}")
        if self.fold_file is None or not Path(self.fold_file).is_file():
            self.fold_table = table
        elif self.folds != table.folds:
            rank_zero_warn(f"{self.fold_file} holds other folds than the checkpoint. {MAYBE_TRAINED}")

    @cached_property
    def data_digest(self) -> str:
        """Return 16 hexadecimal digits of all images and labels that train or validate."""
        assert self.dataset is not None
        digest = scan_dataset(self.dataset, is_quiet=True).digest
        if self.split == "folds" or self.val_dataset is None:
            return digest
        both = digest + scan_dataset(self.val_dataset, is_quiet=True).digest
        return hashlib.sha256(both.encode()).hexdigest()[:DIGEST_LENGTH]

    @property
    def _split_settings(self) -> dict[str, Any]:
        return {"n_folds": self.n_folds, "split_seed": self.split_seed, "fold_method": self.fold_method}

    @cached_property
    def _compressed_folds(self) -> bytes:
        return zlib.compress(self.folds_csv().encode())

    def _validation_warning(self, parts: Mapping[str, Part]) -> str | None:
        """Describe validation images of a single class; None if they have more, or there are none.

        Args:
            parts: The data sets by their keys in the configuration.
        """
        if not self.has_validation:
            return None
        if self.split == "official":
            return validation_warning(parts["data.val_dataset"])
        return validation_warning(parts["data.dataset"], self._fold_indices(is_validation=True))

    def _fold_indices(self, *, is_validation: bool) -> list[int]:
        assert self.dataset is not None
        return [i for i, name in enumerate(self.dataset.names) if (self.folds[name] == self.fold) == is_validation]
