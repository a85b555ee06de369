"""`deeplab kfold`: the same training on every fold, one process each, and what they say together."""

import argparse
import copy
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from deeplab_lightning.callbacks.run_record import unused_path
from deeplab_lightning.console import table_console
from deeplab_lightning.data.cache import write_text
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.problems import DataError
from deeplab_lightning.experiments.aggregate import aggregate, print_cv
from deeplab_lightning.experiments.data_config import build_datamodule
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.jobs import Interrupted, Job, JobState, LocalLauncher, run_jobs
from deeplab_lightning.experiments.training import option, resolve_fit_config, run_training_command
from deeplab_lightning.experiments.wandb_cv import log_cv

_MACHINE_KEYS = ("accelerator", "devices", "strategy", "num_nodes", "sync_batchnorm", "enable_progress_bar")


def kfold(args: list[str]) -> None:
    """Run the command.

    Raises:
        SystemExit: 1 if a fold failed, 130 or 143 after SIGINT or SIGTERM, 2 for a wrong command line.
    """
    given, rest = _parser().parse_known_args(args)
    if given.aggregate:
        print_cv(aggregate(Path(given.aggregate)), Path(given.aggregate))
        return
    refuse_under_a_launcher()
    if given.resume and given.name and option(rest, "-c", "--config") is None:
        rest = ["-c", str(_begun(Path(option(rest, "--output_dir") or "runs") / given.name)), *rest]
    config = resolve_fit_config(rest)
    if given.n_folds is not None:
        config["data"]["n_folds"] = given.n_folds
    folder = _folder(given.name or config["name"], config, is_resumed=given.resume)
    chosen = None if given.folds is None else _numbers(given.folds)
    experiment = Experiment.prepare(folder, config, fold_list(chosen, config["data"]["n_folds"]))
    run_experiments(
        [experiment],
        at_once=given.jobs,
        devices=given.devices.split(",") if given.devices else [],
        has_predictions=given.predictions,
        is_in_process=given.in_process,
        going_on=shlex.join(
            ["deeplab", "kfold", "--resume", "--name", folder.name, "--output_dir", str(folder.parent)]
        ),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deeplab kfold",
        description="Train on every fold, each in a process of its own, and pool what they validated. "
        "All other options are those of `deeplab fit`.",
    )
    parser.add_argument("--n_folds", type=int, help="number of folds (data.n_folds)")
    parser.add_argument("--folds", help="only these folds, such as 0,2")
    parser.add_argument("--name", help="name of the experiment's folder; made from model and time if not given")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the experiment of this --name, by its own settings if no -c"
    )
    parser.add_argument("--predictions", action="store_true", help="also write the out-of-fold predictions")
    parser.add_argument("--aggregate", metavar="FOLDER", help="only pool the folds of an experiment's folder")
    add_launcher_options(parser)
    return parser


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """How many processes run at once, and where."""
    parser.add_argument("--jobs", type=int, default=1, help="folds that train at once (1)")
    parser.add_argument("--devices", help="GPU indices to deal out to them, such as 0,1,2,3")
    parser.add_argument("--in_process", action="store_true", help="one after the other in this process, to debug")


def refuse_under_a_launcher() -> None:
    """Stop where every process of a launcher would start all folds."""
    if any(int(os.environ.get(key, 1)) > 1 for key in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")):
        raise RuntimeError(
            "deeplab kfold starts one process per fold itself; run it without torchrun or srun, and set "
            "trainer.devices for the processes of each fold."
        )


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
        if (folder / "config.yaml").is_file():
            _check_same(yaml.safe_load((folder / "config.yaml").read_text()), config, folder)
        if (folder / "folds.csv").is_file():
            config["data"]["fold_file"] = str(folder / "folds.csv")
        datamodule = _datamodule(config)
        write_text(folder / "folds.csv", datamodule.folds_csv())
        balance = datamodule.balance().to_csv(datamodule.foreground)
        write_text(folder / "balance.csv", balance)
        config["data"]["fold_file"] = str(folder / "folds.csv")
        _write_yaml(folder / "config.yaml", config)
        experiment = cls(folder, config, folds, group or folder.name)
        assert datamodule.dataset is not None
        paths = dict(zip(datamodule.dataset.names, datamodule.dataset.paths, strict=True))
        for fold in folds:
            _write_yaml(experiment.fold_folder(fold) / "job.yaml", experiment.fold_config(fold))
            held_out = [str(paths[name].absolute()) for name, f in datamodule.folds.items() if f == fold]
            text = "\n".join([*held_out, ""])
            write_text(experiment.fold_folder(fold) / "val_images.txt", text)
        return experiment

    def fold_folder(self, fold: int) -> Path:
        """Run folder of a fold."""
        return self.folder / f"fold_{fold}"

    def fold_config(self, fold: int) -> dict[str, Any]:
        """What `deeplab fit -c` trains for a fold."""
        config = copy.deepcopy(self.config)
        config |= {"name": f"fold_{fold}", "output_dir": str(self.folder), "ckpt_path": "last"}
        config["data"] |= {"fold": fold, "fold_file": str(self.folder / "folds.csv")}
        loggers = config["trainer"]["logger"]
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, dict) and str(logger.get("class_path", "")).endswith("WandbLogger"):
                net = config["model"]["net"]
                tags = [
                    config["data"]["dataset"]["class_path"].rsplit(".", 1)[-1],
                    net["class_path"].rsplit(".", 1)[-1],
                    str(net.get("init_args", {}).get("backbone", "")),
                ]
                logger["init_args"] |= {
                    "group": self.group,
                    "name": f"{self.group}/fold{fold}",
                    "job_type": "fold",
                    "tags": [tag for tag in tags if tag],
                }
        return config

    def is_finished(self, fold: int) -> bool:
        """Whether the fold's result is there, which is written last."""
        path = self.fold_folder(fold) / "result.json"
        if not path.is_file():
            return False
        result = json.loads(path.read_text())
        return bool(result["fold"] == fold and result["n_folds"] == self.config["data"]["n_folds"])

    def job(self, fold: int, *, has_predictions: bool) -> Job:
        """The commands that are still to do for a fold; none if it is finished."""
        folder = self.fold_folder(fold)
        commands = [] if self.is_finished(fold) else [["fit", "-c", str(folder / "job.yaml")]]
        if has_predictions and not _is_predicted(folder):
            output = folder / "val_predictions"
            options = {
                "--ckpt_path": folder / "checkpoints" / "best.ckpt",
                "--images": folder / "val_images.txt",
                "--output": output,
            }
            commands.append(["predict", *(str(word) for option in options.items() for word in option)])
        return Job(f"{self.folder.name}/fold_{fold}", commands, folder, lambda: self.is_finished(fold))


def _is_predicted(folder: Path) -> bool:
    """Whether every held-out picture has its prediction."""
    pictures = (folder / "val_images.txt").read_text().splitlines()
    return len(list(folder.glob("val_predictions/masks/**/*.png"))) >= len(pictures)


def run_experiments(
    experiments: Sequence[Experiment],
    *,
    at_once: int = 1,
    devices: Sequence[str] = (),
    has_predictions: bool = False,
    is_in_process: bool = False,
    going_on: str = "run the same command again",
) -> None:
    """Train what is not finished yet, and aggregate.

    Args:
        experiments: Prepared ones.
        at_once: Folds that train at once.
        devices: GPU indices to deal out.
        has_predictions: Also write the out-of-fold predictions.
        is_in_process: Train in this process instead of one per fold.
        going_on: What continues after an interruption, for the message.

    Raises:
        SystemExit: 1 if a fold failed, 130 or 143 after a signal.
    """
    if at_once < 1:
        raise ValueError(f"--jobs must be at least 1, got {at_once}.")
    everything = [e.job(fold, has_predictions=has_predictions) for e in experiments for fold in e.folds]
    jobs = [job for job in everything if job.commands]
    console = table_console()
    if len(jobs) < len(everything):
        console.print(f"{len(everything) - len(jobs)} of {len(everything)} folds are finished already.")
    failed: dict[str, JobState] = {}
    if is_in_process:
        for job in jobs:
            for command in job.commands:
                run_training_command(command[0], list(command[1:]))
    else:
        with JobTable(console) as table:
            try:
                states = run_jobs(jobs, LocalLauncher(at_once, devices), at_once=at_once, on_change=table.show)
            except Interrupted as stop:
                table.close()
                console.print(f"{stop}: nothing is left running. To go on: {going_on}", soft_wrap=True, markup=False)
                sys.exit(128 + stop.number)
        failed = {state.job.name: state for state in states if state.state == "failed"}
    results = {}
    for experiment in experiments:
        if any(experiment.is_finished(fold) for fold in experiment.folds):
            results[experiment.folder] = aggregate(experiment.folder)
            print_cv(results[experiment.folder], experiment.folder)
    for name, state in failed.items():
        log = state.job.folder / "log.txt"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
        console.print(f"failed: {name}: {state.error or (lines or ['it printed nothing'])[-1]}", markup=False)
        console.print(f"        {log}", soft_wrap=True, markup=False)
    for experiment in experiments:  # last, as it may need a server
        if all(experiment.is_finished(fold) for fold in experiment.folds):
            log_cv(results[experiment.folder], experiment.folder, experiment.config, group=experiment.group)
    if failed:
        sys.exit(1)


def _folder(name: str | None, config: dict[str, Any], *, is_resumed: bool) -> Path:
    output = Path(config["output_dir"])
    if is_resumed:
        if name is None:
            raise DataError("--resume needs the --name of the experiment to go on with.")
        return _begun(output / name).parent
    if name is None:
        net = config["model"]["net"]
        backbone = str(net.get("init_args", {}).get("backbone", ""))
        model = net["class_path"].rsplit(".", 1)[-1].lower()
        name = "-".join(part for part in ("cv", model, backbone, f"{datetime.now():%Y%m%d-%H%M%S}") if part)
    return unused_path(output / name)


def _begun(folder: Path) -> Path:
    """The configuration of an experiment that was begun."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"no experiment to resume: {folder.absolute()}")
    return folder / "config.yaml"


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--folds must be numbers such as 0,2, got {text!r}.") from error


def fold_list(chosen: Sequence[int] | None, n_folds: int) -> list[int]:
    """The chosen folds in order, or all of them.

    Raises:
        ValueError: For a fold outside [0, n_folds).
    """
    if chosen is None:
        return list(range(n_folds))
    if not all(0 <= fold < n_folds for fold in chosen):
        raise ValueError(f"folds must be in [0, {n_folds}), got {list(chosen)}.")
    return sorted(set(chosen))


def _datamodule(config: dict[str, Any]) -> SegmentationDataModule:
    """The data, checked."""
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        path = Path(scratch) / "config.yaml"
        path.write_text(yaml.safe_dump({"data": config["data"]}))
        datamodule = build_datamodule(["-c", str(path)], "deeplab kfold", has_all_files=True)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def _check_same(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """An experiment goes on with the settings that it began with, on whatever machine."""
    differing = [
        f"{key}: {_short(before)} then, {_short(after)} now"
        for key, before, after in _differences(_of_training(then), _of_training(now))
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
    for key in (*_MACHINE_KEYS, "logger", "callbacks"):
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
