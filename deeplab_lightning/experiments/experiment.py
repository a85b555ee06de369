"""Prepare a K-fold experiment and list the commands that remain to be run."""

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplab_lightning.class_paths import init_args_of
from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.experiments.jobs import Job
from deeplab_lightning.experiments.settings import (
    fold_differences,
    is_data_location,
    setting_differences,
    settings_hash,
)
from deeplab_lightning.files import unused_path, write_atomically
from deeplab_lightning.runs import ExperimentFolder, RunFolder

if TYPE_CHECKING:
    from deeplab_lightning.data.datamodule import SegmentationDataModule


@dataclass(frozen=True)
class Experiment:
    """Hold one configuration and the folds to train it on.

    Attributes:
        folder: The experiment's folder, with `config.yaml`, `folds.csv` and a run's folder per fold.
        config: Resolved configuration of `fit`.
        folds: 0-based folds to train.
        group: Group of the folds in W&B, see `prepare`.
    """

    folder: Path
    config: dict[str, Any]
    folds: Sequence[int]
    group: str

    @classmethod
    def prepare(
        cls, folder: Path, config: dict[str, Any], folds: Sequence[int], *, name: str | None = None
    ) -> "Experiment":
        """Check data and configuration, and write the files that the folds need, before any training.

        Args:
            folder: The experiment's folder.
            config: Resolved configuration of `fit`.
            folds: 0-based folds to train.
            name: Name in W&B; the folder's if None. The group of the folds there is the name and a hash of the
                settings, so that experiments of one name share no group. One that was started keeps its group.

        Raises:
            DataError: If the data are bad, the split is official, or the folder holds an experiment with other
                settings, or folds that were trained with other settings or folds, or on other images or labels.
        """
        from deeplab_lightning.data.config import datamodule_from_config  # slow to import

        data = config["data"]
        if data["split"] != "folds" or data["dataset"] is None:
            raise DataError("deeplab kfold needs data.dataset and data.split: folds; an official split has no folds.")
        config = {**copy.deepcopy(config), "name": folder.name, "ckpt_path": None}
        config["data"]["fold"] = 0
        files = ExperimentFolder(folder)
        moved = check_same(files.read_config(), config, folder) if files.config.is_file() else []
        _check_folds(files, config)
        if files.folds.is_file():
            config["data"]["fold_file"] = str(files.folds)
        datamodule = datamodule_from_config(config["data"])
        datamodule.prepare_data()
        datamodule.setup("fit")
        _check_data(files, datamodule, moved)
        files.write_splits(datamodule.folds_csv(), datamodule.balance_csv())
        config["data"]["fold_file"] = str(files.folds)
        files.write_config(config)
        group = _started_group(files) or f"{name or folder.name}-{settings_hash(config)}"
        experiment = cls(folder, config, folds, group)
        for fold in folds:
            experiment._write_job(fold, datamodule)
        return experiment

    def _write_job(self, fold: int, datamodule: "SegmentationDataModule") -> None:
        """Write the configuration and the list of held-out images of a fold."""
        assert datamodule.dataset is not None
        run = self.fold_folder(fold)
        _note_epochs(run)
        run.write_job(self.fold_config(fold))
        paths = dict(zip(datamodule.dataset.names, datamodule.dataset.paths, strict=True))
        run.write_val_images({name: paths[name] for name, f in datamodule.folds.items() if f == fold})

    def fold_folder(self, fold: int) -> RunFolder:
        """Return the run's folder of a fold."""
        return ExperimentFolder(self.folder).fold(fold)

    def fold_config(self, fold: int) -> dict[str, Any]:
        """Return the configuration of `deeplab fit` for a fold."""
        config = copy.deepcopy(self.config)
        config |= {"name": self.fold_folder(fold).name, "output_dir": str(self.folder), "ckpt_path": "last"}
        config["data"] |= {"fold": fold, "fold_file": str(ExperimentFolder(self.folder).folds)}
        if (seed := self._seed(fold)) is not None:
            config["seed_everything"] = seed
        net = config["model"]["net"]
        tags = [
            config["data"]["dataset"]["class_path"].rsplit(".", 1)[-1],
            net["class_path"].rsplit(".", 1)[-1],
            str(net.get("init_args", {}).get("backbone", "")),
        ]
        for arguments in init_args_of("WandbLogger", config["trainer"]["logger"]):
            arguments |= {
                "group": self.group,
                "name": f"{self.group}/fold{fold}",
                "job_type": "fold",
                "tags": [tag for tag in tags if tag],
            }
        return config

    def _seed(self, fold: int) -> int | None:
        """Return the seed of a fold: a fold of its own, so that the luck of one draw of weights is not that of all.

        A fold that an earlier version started goes on with its seed.
        """
        seed: Any = self.config.get("seed_everything")
        run = self.fold_folder(fold)
        if run.job.is_file() and run.checkpoints.is_dir():
            started: Any = run.read_job().get("seed_everything")
            return int(started) if isinstance(started, int) and not isinstance(started, bool) else None
        return (seed + fold) % 2**32 if isinstance(seed, int) and not isinstance(seed, bool) else None

    def is_finished(self, fold: int) -> bool:
        """Check whether a fold's result is whole and belongs to this split; it is written last."""
        run = self.fold_folder(fold)
        try:
            result = run.read_result()
            is_own = result is not None and (result["fold"], result["n_folds"]) == (
                fold,
                self.config["data"]["n_folds"],
            )
            is_own = is_own and not _is_more(result.get("max_epochs") if result else None, _max_epochs(self.config))
            if is_own and run.images.is_file():
                run.read_images()
                run.read_last_images()
        except DataError:
            return False
        return is_own

    def is_done(self, fold: int, *, has_predictions: bool) -> bool:
        """Check whether a fold has its result, and the predictions of its held-out images if they are wanted."""
        return self.is_finished(fold) and (not has_predictions or _is_predicted(self.fold_folder(fold)))

    def _set_damaged_aside(self, fold: int) -> None:
        """Move the folder of a fold whose matrices are damaged, since a resumed training would not make them again."""
        run = self.fold_folder(fold)
        try:
            for read in (run.read_images, run.read_last_images):
                if run.images.is_file():
                    read()
        except DataError as error:
            config = run.read_job()
            images = run.val_images.read_bytes() if run.val_images.is_file() else None
            aside = unused_path(run.path.with_name(f"{run.name}-damaged"))
            run.path.rename(aside)
            run.write_job(config)
            if images is not None:
                write_atomically(run.val_images, lambda file: file.write(images))
            print(f"{error} It is trained again; the old folder is {aside}.", file=sys.stderr)

    def job(self, fold: int, *, has_predictions: bool) -> Job:
        """Return the remaining commands of a fold; none if it is finished.

        A folder whose matrices are damaged is moved aside first, so that the fold is trained again.

        Args:
            fold: 0-based fold.
            has_predictions: Whether the held-out images are predicted as well.
        """
        self._set_damaged_aside(fold)
        run = self.fold_folder(fold)
        commands = [] if self.is_finished(fold) else [["fit", "-c", str(run.job)]]
        if has_predictions and not _is_predicted(run):
            options = {"--ckpt_path": run.best, "--images": run.val_images, "--output": run.val_predictions.path}
            words = (str(word) for option in options.items() for word in option)
            commands.append(["predict", *words, "--trust"])  # the classes of a training that ran here
        return Job(f"{self.folder.name}/{run.name}", commands, run.path, lambda: self.is_finished(fold))


def _started_group(files: ExperimentFolder) -> str | None:
    """Return the W&B group of the folds that were started; None if none was."""
    for run in files.runs():
        with suppress(OSError, DataError):
            logger = (run.read_job().get("trainer") or {}).get("logger")
            for arguments in init_args_of("WandbLogger", logger):
                if arguments.get("group"):
                    return str(arguments["group"])
    return None


def _is_predicted(run: RunFolder) -> bool:
    """Check whether every held-out image has its prediction by the best checkpoint."""
    table = run.val_predictions.table
    if table.is_file() and run.best.is_file() and table.stat().st_mtime_ns < run.best.stat().st_mtime_ns:
        return False  # the fold was trained further
    return len(list(run.val_predictions.masks.rglob("*.png"))) >= len(run.read_val_images())


def fold_list(chosen: Sequence[int] | None, n_folds: int) -> list[int]:
    """Return the chosen folds in order without repetition, or all folds.

    Args:
        chosen: 0-based folds; all if None.
        n_folds: Number of folds of the split.

    Raises:
        ValueError: If a fold is not in [0, n_folds).
    """
    if chosen is None:
        return list(range(n_folds))
    if not all(0 <= fold < n_folds for fold in chosen):
        raise UserError(f"folds must be in [0, {n_folds}), got {list(chosen)}.")
    return sorted(set(chosen))


def check_same(then: dict[str, Any], now: dict[str, Any], folder: Path, *, may_move: bool = True) -> list[str]:
    """Raise an error if an experiment would continue with other settings; the machine may differ.

    More epochs are no other setting: the folds are trained further. Nor is another place of the data, which
    `prepare` compares by their digest, unless `may_move` is false.

    Returns:
        The places of the data that differ, as clauses.
    """
    found = {
        key: f"{key}: {_short(before)} then, {_short(after)} now"
        for key, (before, after) in setting_differences(then, now).items()
        if not (key == "trainer.max_epochs" and _is_more(before, after))
    }
    moved = [text for key, text in found.items() if may_move and is_data_location(key)]
    if differing := [text for text in found.values() if text not in moved]:
        raise DataError(
            f"{folder} was started with other settings: {'; '.join(differing[:5])}. "
            "Resume with the same settings, or choose another --name."
        )
    return moved


def _check_folds(files: ExperimentFolder, config: Mapping[str, Any]) -> None:
    """Raise an error if a finished fold is not of this experiment: of another one, another split or other settings."""
    for run in files.runs():
        result, configs = None, list[dict[str, Any]]()
        with suppress(OSError, DataError):  # a damaged fold is trained again
            result = run.read_result()
        if result is None or run.path == files.path:
            continue
        if fault := files.fault_of(run, result):
            raise DataError(f"{fault} Move it away to train the fold again, or choose another --name.")
        with suppress(OSError, DataError):
            configs = run.read_configs()
        if differing := next(filter(None, (fold_differences(own, config) for own in configs)), None):
            texts = [f"{key}: {_short(then)} there, {_short(now)} now" for key, (then, now) in differing.items()]
            raise DataError(
                f"{run} was trained with other settings than this experiment has: {'; '.join(texts[:5])}. Restore "
                f"{files.config}, move the fold away to train it again, or choose another --name."
            )


def _check_data(files: ExperimentFolder, datamodule: "SegmentationDataModule", moved: Sequence[str]) -> None:
    """Raise an error if folds were trained on other images or labels than there are now, by the digest of each.

    Args:
        files: The experiment's folder.
        datamodule: The data.
        moved: Places of the data that differ from those of the start.

    Raises:
        DataError: If they were, or the data lie elsewhere and no fold says what it was trained on.
    """
    from deeplab_lightning.checkpoints import read_checkpoint, saved_digest  # slow to import

    now = datamodule.data_digest
    digests: dict[str, str] = {}
    for run in files.runs():
        with suppress(DataError):
            found = (run.read_result() or {}).get("data_digest")
            if found is None and run.last.is_file():
                with suppress(UserError):  # a damaged one is met later
                    found = saved_digest(read_checkpoint(run.last))
            if found and len(found) == len(now):  # those of earlier versions say less
                digests[run.name] = str(found)
    if other := next((name for name, digest in digests.items() if digest != now), None):
        raise DataError(
            f"images or labels have changed since {other} of {files.path} was trained (digest {digests[other]} then, "
            f"{now} now), and its figures cannot be pooled with those of new folds. Restore the data, or choose "
            "another --name."
        )
    if moved and not digests:
        raise DataError(
            f"{files.path} was started with data elsewhere ({'; '.join(moved)}), and no fold "
            "says what it was trained on. Resume with the same place, or choose another --name."
        )


def _max_epochs(config: Mapping[str, Any]) -> Any:
    return (config.get("trainer") or {}).get("max_epochs")


def _is_more(before: Any, after: Any) -> bool:
    """Check whether a number of epochs is larger than another one; without a limit, nothing can be said."""
    return type(before) is int and type(after) is int and 0 < before < after


def _note_epochs(run: RunFolder) -> None:
    """Note in the result of an earlier version up to which epoch it was trained, before its settings change."""
    with suppress(OSError, DataError):
        result = run.read_result()
        if result is not None and "max_epochs" not in result:
            run.write_result({**result, "max_epochs": _max_epochs(run.read_job())})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
