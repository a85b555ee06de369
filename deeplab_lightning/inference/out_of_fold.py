"""Predict the images of an experiment by the networks that were not trained on them."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from deeplab_lightning.checkpoints import import_problem
from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.digest import is_other_data
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.inference.model import Model, load
from deeplab_lightning.runs import ExperimentFolder, RunFolder

_OF_TRAINING = ("train_transforms", "copy_paste", "extra_datasets", "predict_images")


class HeldOut(NamedTuple):
    """Hold what the networks predict of an image that they were not trained on.

    Attributes:
        name: Key of the image.
        fold: The fold that held it out.
        mask: (H, W) uint8, its labels.
        probabilities: (K, H, W) float32, on the device of the networks.
    """

    name: str
    fold: int
    mask: npt.NDArray[np.uint8]
    probabilities: Tensor


class OutOfFold:
    """Predict each image of a K-fold experiment by the best checkpoints of the fold that held it out.

    The networks of `kfold --seeds` that held out the same fold are averaged. A single run is an experiment of one fold,
    whose images are its validation images.

    Args:
        folder: The experiment, or the run.
        device: See `load`.
        trust: Whether its configuration and checkpoints may name classes of any package.

    Attributes:
        folder: The experiment, or the run.

    Raises:
        FileNotFoundError: If there is no finished run with a best checkpoint.
        DataError: If the data cannot be used, or have no validation part.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None, trust: bool = False) -> None:
        self.folder = Path(folder)
        self._device, self._trust = device, trust
        files = ExperimentFolder(self.folder)
        self._parts = files.seeds() or [files]
        pairs = [(part, run) for part in self._parts for run in part.runs()]
        pairs = [(part, run) for part, run in pairs if run.result.is_file() and run.best.is_file()]
        if not pairs:
            raise MissingFileError(f"no finished run with a best.ckpt in {self.folder.absolute()}.")
        self._runs: dict[int, list[RunFolder]] = {}
        for part, run in pairs:
            result = run.read_result()
            assert result is not None
            if fault := part.fault_of(run, result):
                raise DataError(f"{fault} It may have been trained on images that it would be asked about.")
            self._runs.setdefault(result["fold"] or 0, []).append(run)
        self._config: Mapping[str, Any] = self._read_config(pairs[0][1])

    def _read_config(self, run: RunFolder) -> dict[str, Any]:
        """Return the settings of the data that a run was validated on; the experiment's, if they were moved since."""
        of_all = self._parts[0].config
        source = RunFolder(self._parts[0].path) if of_all.is_file() else run
        try:
            config = source.read_configs()[-1]
            data = {key: value for key, value in config["data"].items() if key not in _OF_TRAINING}
        except (OSError, DataError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{source.config}: is damaged, or no configuration of `deeplab fit`.") from error
        if problem := import_problem(data, trust=self._trust, owner=SegmentationDataModule):
            raise UserError(f"{source.config} cannot be used, since {problem}.")
        folds = self._parts[0].folds if self._parts[0].folds.is_file() else run.folds
        return data | ({"fold_file": str(folds)} if data["split"] == "folds" else {})

    @cached_property
    def data(self) -> SegmentationDataModule:
        """Return the data module of the experiment, whose files were checked."""
        data = datamodule_from_config(self._config)
        data.prepare_data()
        data.setup("validate")
        if not data.has_validation:
            raise DataError(f"{self.folder} held out no image: data.fold is null.")
        results = [run.read_result() or {} for runs in self._runs.values() for run in runs]
        if any(is_other_data(result.get("data_digest"), data.data_digest) for result in results):
            rank_zero_warn(f"images or labels have changed since {self.folder} was trained.")
        return data

    @property
    def dataset(self) -> SegmentationDataset:
        """Return the data set of the held-out images."""
        dataset = self.data.val_dataset if self.data.split == "official" else self.data.dataset
        assert dataset is not None
        return dataset

    @property
    def classes(self) -> ClassTable:
        """Return the class table."""
        return self.data.classes

    @property
    def fold_numbers(self) -> list[int]:
        """Return the numbers of the finished folds in order."""
        return sorted(self._runs)

    @property
    def missing_folds(self) -> list[int]:
        """Return the folds of the split that no finished run held out."""
        if self.data.split == "official" or len(self._runs) < 2:
            return []
        return sorted(set(self.data.folds.values()) - self._runs.keys())

    def networks(self, fold: int) -> int:
        """Return the number of networks that held out a fold: one for each seed."""
        return len(self._runs[fold])

    @cached_property
    def folds(self) -> dict[str, int]:
        """Return the fold of each image that a finished fold held out, by the image's key."""
        if self.data.split == "official":
            return dict.fromkeys(self.dataset.names, self.fold_numbers[0])
        return {name: fold for name, fold in self.data.folds.items() if fold in self._runs}

    @property
    def checkpoints(self) -> list[Path]:
        """Return the best checkpoints of all finished folds and seeds."""
        return [run.best for fold in self.fold_numbers for run in self._runs[fold]]

    def model(self, fold: int, *, tta: str | None = None) -> Model:
        """Load the networks that held out a fold.

        Args:
            fold: The fold.
            tta: See `load`.
        """
        paths = [run.best for run in self._runs[fold]]
        return load(paths, device=self._device, tta=tta, trust=self._trust)

    def samples(self, fold: int) -> Iterator[Sample]:
        """Yield the images that a fold held out with their masks, both at the size of the files."""
        dataset = self.dataset
        for index, name in enumerate(dataset.names):
            if self.folds.get(name) == fold:
                yield dataset[index]

    def predictions(self, *, tta: str | None = None) -> Iterator[HeldOut]:
        """Yield the prediction of each image, fold by fold; one at a time is in memory.

        Args:
            tta: See `load`.
        """
        for fold in self.fold_numbers:
            model = self.model(fold, tta=tta)
            for sample in self.samples(fold):
                assert sample.mask is not None
                probabilities = model.probabilities(sample.image.as_subclass(Tensor))
                yield HeldOut(sample.name, fold, sample.mask.as_subclass(Tensor).numpy(), probabilities)
