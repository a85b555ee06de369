"""A K-fold experiment: one configuration, the folds it trains on, and the commands that are left to do."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deeplab_lightning.class_paths import canonical
from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.experiments.jobs import Job
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tracking.mode import wandb_arguments

MACHINE_KEYS = ("accelerator", "devices", "strategy", "num_nodes", "sync_batchnorm")
"""Settings of the trainer that describe the machine, not the training."""


@dataclass(frozen=True)
class Experiment:
    """One configuration on several folds.

    Attributes:
        folder: Its folder, with `config.yaml`, `folds.csv` and a run folder per fold.
        config: The resolved configuration of `fit`.
        folds: The folds to train.
        group: What W&B calls it.
    """

    folder: Path
    config: dict[str, Any]
    folds: Sequence[int]
    group: str

    @classmethod
    def prepare(
        cls, folder: Path, config: dict[str, Any], folds: Sequence[int], *, group: str | None = None
    ) -> "Experiment":
        """Check data and configuration, and write what all folds share, before anything is trained.

        Args:
            folder: The experiment's folder.
            config: The resolved configuration of `fit`.
            folds: The folds to train.
            group: What W&B calls it; the folder's name if None.

        Raises:
            DataError: For bad data, an official split, or a folder of an experiment with other settings.
        """
        data = config["data"]
        if data["split"] != "folds" or data["dataset"] is None:
            raise DataError("deeplab kfold needs data.dataset and data.split: folds; an official split has no folds.")
        config = {**copy.deepcopy(config), "name": folder.name, "ckpt_path": None}
        config["data"]["fold"] = 0
        files = ExperimentFolder(folder)
        if files.config.is_file():
            _check_same(files.read_config(), config, folder)
        if files.folds.is_file():
            config["data"]["fold_file"] = str(files.folds)
        datamodule = datamodule_from_config(config["data"])
        datamodule.prepare_data()
        datamodule.setup("fit")
        files.write_splits(datamodule.folds_csv(), datamodule.balance_csv())
        config["data"]["fold_file"] = str(files.folds)
        _write_yaml(files.config, config)
        experiment = cls(folder, config, folds, group or folder.name)
        for fold in folds:
            experiment._write_job(fold, datamodule)
        return experiment

    def _write_job(self, fold: int, datamodule: SegmentationDataModule) -> None:
        """Write what `fit` and `predict` of a fold read."""
        assert datamodule.dataset is not None
        run = self.fold_folder(fold)
        _write_yaml(run.job, self.fold_config(fold))
        paths = dict(zip(datamodule.dataset.names, datamodule.dataset.paths, strict=True))
        held_out = [str(paths[name].absolute()) for name, f in datamodule.folds.items() if f == fold]
        write_text(run.val_images, "\n".join([*held_out, ""]))

    def fold_folder(self, fold: int) -> RunFolder:
        """Return the run folder of a fold."""
        return ExperimentFolder(self.folder).fold(fold)

    def fold_config(self, fold: int) -> dict[str, Any]:
        """Return the configuration that `deeplab fit -c` trains for a fold."""
        config = copy.deepcopy(self.config)
        config |= {"name": f"fold_{fold}", "output_dir": str(self.folder), "ckpt_path": "last"}
        config["data"] |= {"fold": fold, "fold_file": str(ExperimentFolder(self.folder).folds)}
        net = config["model"]["net"]
        tags = [
            config["data"]["dataset"]["class_path"].rsplit(".", 1)[-1],
            net["class_path"].rsplit(".", 1)[-1],
            str(net.get("init_args", {}).get("backbone", "")),
        ]
        for arguments in wandb_arguments(config["trainer"]["logger"]):
            arguments |= {
                "group": self.group,
                "name": f"{self.group}/fold{fold}",
                "job_type": "fold",
                "tags": [tag for tag in tags if tag],
            }
        return config

    def is_finished(self, fold: int) -> bool:
        """Check whether the fold's result exists, which is written last."""
        result = self.fold_folder(fold).read_result()
        return result is not None and (result["fold"], result["n_folds"]) == (fold, self.config["data"]["n_folds"])

    def job(self, fold: int, *, has_predictions: bool) -> Job:
        """The commands that are still to do for a fold; none if it is finished."""
        run = self.fold_folder(fold)
        commands = [] if self.is_finished(fold) else [["fit", "-c", str(run.job)]]
        if has_predictions and not _is_predicted(run):
            options = {"--ckpt_path": run.best, "--images": run.val_images, "--output": run.val_predictions}
            commands.append(["predict", *(str(word) for option in options.items() for word in option)])
        return Job(f"{self.folder.name}/fold_{fold}", commands, run.path, lambda: self.is_finished(fold))


def _is_predicted(run: RunFolder) -> bool:
    """Check whether every held-out image has its prediction."""
    images = run.val_images.read_text().splitlines()
    return len(list((run.val_predictions / "masks").rglob("*.png"))) >= len(images)


def fold_list(chosen: Sequence[int] | None, n_folds: int) -> list[int]:
    """The chosen folds in order, or all of them.

    Raises:
        ValueError: For a fold outside [0, n_folds).
    """
    if chosen is None:
        return list(range(n_folds))
    if not all(0 <= fold < n_folds for fold in chosen):
        raise UserError(f"folds must be in [0, {n_folds}), got {list(chosen)}.")
    return sorted(set(chosen))


def _check_same(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """An experiment goes on with the settings that it began with, on whatever machine."""
    differing = [
        f"{key}: {_short(before)} then, {_short(after)} now"
        for key, before, after in _differences(canonical(_of_training(then)), canonical(_of_training(now)))
    ]
    if differing:
        raise DataError(
            f"{folder} was begun with other settings: {'; '.join(differing[:5])}. "
            "Resume with the same ones, or choose another --name."
        )


def _of_training(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that a result depends on."""
    config = copy.deepcopy(config)
    for key in ("wandb", "output_dir", "name", "ckpt_path"):
        config.pop(key, None)
    for key in (*MACHINE_KEYS, "enable_progress_bar", "logger", "callbacks"):
        config["trainer"].pop(key, None)
    for key in ("fold", "fold_file", "num_workers", "cache", "eval_batch_size"):
        config["data"].pop(key, None)
    return config


def _differences(then: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings that both have and that differ: a newer version may know more keys."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() & now.keys()):
            yield from _differences(then[key], now[key], f"{prefix}.{key}" if prefix else str(key))
    elif then != now:
        yield prefix, then, now


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False)
    write_text(path, text)
