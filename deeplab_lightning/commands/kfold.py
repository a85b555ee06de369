"""Run `deeplab kfold`: train every fold in a process of its own, and pool the results."""

import argparse
import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from deeplab_lightning.commands.folds import run_experiments, write_page_of
from deeplab_lightning.commands.option_values import check_name
from deeplab_lightning.commands.options import option
from deeplab_lightning.commands.parsers import kfold_parser
from deeplab_lightning.commands.placement import Placement
from deeplab_lightning.commands.queueing import check_cluster, refuse_queued
from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError
from deeplab_lightning.experiments.aggregate import aggregate, print_cv, read_cv
from deeplab_lightning.experiments.early_stop import Baseline
from deeplab_lightning.experiments.experiment import Experiment, fold_list
from deeplab_lightning.experiments.folder_choice import give_back, lock_folder, take_folder
from deeplab_lightning.experiments.locks import check_system
from deeplab_lightning.runs import ExperimentFolder, made_up_name
from deeplab_lightning.tables import table_console

_KEPT_FLAGS = ("--cheap", "--predictions")
_KEPT_OPTIONS = ("--folds", "--seeds", "--jobs", "--devices", "--baseline", "--launcher")
"""Options that the configuration of an experiment does not hold, and that a resumed command needs again."""


def kfold(args: list[str]) -> None:
    """Train the folds that are not finished, pool them, and log the result.

    Raises:
        SystemExit: With status 1, if a fold failed; 130 or 143 after SIGINT or SIGTERM; 2, if the command line is
            wrong.
    """
    given, rest = kfold_parser().parse_known_args(args)
    placement, rest = Placement.parse(given, rest)
    if given.aggregate:
        for files in ExperimentFolder(given.aggregate).seeds() or [ExperimentFolder(given.aggregate)]:
            print_cv(aggregate(files.path), files.path)
        return
    check_machine()
    _refuse_in_a_sweep(is_in_process=given.in_process, has_seeds=given.seeds is not None)
    check_name(given.name)
    baseline = _baseline(given, placement)
    check_cluster(placement)
    if given.resume and given.name and option(rest, "-c", "--config") is None:
        rest = ["-c", str(_started(Path(option(rest, "--output_dir") or "runs") / given.name)), *rest]
    refuse_fold(rest, "--folds 0,2 trains only some")
    config = resolve_fit_config(rest)
    seeds = None if given.seeds is None else _numbers(given.seeds, "--seeds")
    if given.n_folds is not None:
        config["data"]["n_folds"] = given.n_folds
    placement.refuse_several_nodes(config)
    folder, lock = _folder(given.name or config["name"], config, is_resumed=given.resume)
    with lock or nullcontext():
        chosen = None if given.folds is None else _numbers(given.folds, "--folds")
        refuse_queued(folder, placement)
        try:
            experiments = _prepare(folder, config, fold_list(chosen, config["data"]["n_folds"]), seeds)
            if baseline is not None:
                baseline.check(experiments)
            elif given.cheap:
                baseline = Baseline.of_record(experiments)
        except BaseException:
            give_back(folder)
            raise
        has_ended = run_experiments(
            experiments,
            placement,
            folder=folder,
            command="kfold",
            has_predictions=given.predictions,
            is_cheap=given.cheap,
            baseline=baseline,
            resume_command=_resume_command(folder, args),
        )
    if has_ended:
        finish_seeds(folder, experiments)


def _resume_command(folder: Path, args: Sequence[str]) -> str:
    """Write the command that goes on with the same folds and seeds, in the same place.

    Args:
        folder: Folder of the experiment, whose configuration holds all other settings.
        args: The options as typed.
    """
    kept: list[str] = []
    for index, word in enumerate(args):
        name = word.partition("=")[0]
        if name in _KEPT_FLAGS:
            kept.append(word)
        elif name in _KEPT_OPTIONS or name.startswith("--launcher."):
            kept += [word] if "=" in word else args[index : index + 2]
    own = ["--resume", "--name", folder.name, "--output_dir", str(folder.parent)]
    return shlex.join(["deeplab", "kfold", *own, *kept])


def finish_seeds(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Print and draw what the repetitions of an experiment have in common; nothing if there is one alone.

    Args:
        folder: Folder of all repetitions.
        experiments: The repetitions.
    """
    if len(experiments) > 1:
        _print_seeds(folder, experiments)
        if any(run.result.is_file() for seed in ExperimentFolder(folder).seeds() for run in seed.runs()):
            write_page_of(folder)


def _baseline(given: argparse.Namespace, placement: Placement) -> Baseline | None:
    """Find the experiment that `--cheap` compares with; None if it is not given.

    Raises:
        ValueError: If one option is given without the other in a new experiment, or the folds train in a queue.
    """
    is_recorded = given.resume and given.baseline is None
    if given.cheap != (given.baseline is not None) and not is_recorded:
        raise UserError("--cheap and --baseline go together: --cheap --baseline runs/A stops what cannot beat runs/A.")
    refuse_cheap_queue(given.cheap, placement)
    return None if given.baseline is None else Baseline.find(given.baseline)


def refuse_cheap_queue(is_cheap: bool, placement: Placement) -> None:
    """Refuse `--cheap` where all folds are queued at once, so that none waits for the others' results.

    Raises:
        ValueError: If it is given with `--launcher slurm`.
    """
    if is_cheap and placement.slurm is not None:
        raise UserError("--cheap decides between folds, and --launcher slurm queues all at once: use local or ray.")


def refuse_fold(args: Sequence[str], remedy: str) -> None:
    """Refuse the fold of a single training where all folds are trained.

    Args:
        args: Options of `fit`.
        remedy: How to train only some folds, as a clause.

    Raises:
        ValueError: If the options set `data.fold`.
    """
    if (fold := option(args, "--data.fold")) not in {None, "null"}:
        raise UserError(f"all folds are trained, so --data.fold {fold} has no effect here; {remedy}.")


def _prepare(folder: Path, config: dict[str, Any], folds: list[int], seeds: list[int] | None) -> list[Experiment]:
    """Prepare one experiment, or one for each seed in its folder; a resumed one has the seeds that it has."""
    files = ExperimentFolder(folder)
    started = [int(seed.name.removeprefix("seed_")) for seed in files.seeds()]
    if seeds and files.config.is_file():
        raise UserError(f"{folder} was started without --seeds; give the repetitions another --name.")
    seeds = seeds or started
    if not seeds:
        return [Experiment.prepare(folder, config, folds)]
    experiments = []
    for seed in seeds:
        own = {**config, "seed_everything": seed, "data": {**config["data"], "seed": seed}}
        path = files.seed(seed).path
        experiments.append(Experiment.prepare(path, own, folds, name=f"{folder.name}/{path.name}"))
    return experiments


def _print_seeds(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Print the mIoU of each seed and how far they differ."""
    trained = [[run.name for run in ExperimentFolder(e.folder).runs() if run.result.is_file()] for e in experiments]
    most = max(trained, key=len)
    # Seeds of fewer folds have other images, and compare does not pool them.
    finished = [
        e
        for e, folds in zip(experiments, trained, strict=True)
        if folds == most and all(e.is_finished(fold) for fold in e.folds)
    ]
    values = [read_cv(experiment.folder).pooled_miou for experiment in finished]
    if len(values) > 1:
        shown = ", ".join(f"{value:.3f}" for value in values)
        table_console().print(
            f"{folder.name}: pooled mIoU of {len(values)} seeds {shown}; mean {np.mean(values):.3f}, standard "
            f"deviation {np.std(values, ddof=1):.3f}. `deeplab compare {folder} ...` compares them as one recipe.",
            soft_wrap=True,
            markup=False,
        )


def check_machine() -> None:
    """Refuse to run under torchrun or srun, where every process would start all folds, and on Windows.

    Raises:
        UnavailableError: If a launcher started more than one process, or on Windows.
    """
    check_system()
    if any(int(os.environ.get(key, 1)) > 1 for key in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")):
        raise UnavailableError(
            "deeplab kfold starts one process per fold itself; run it without torchrun or srun, and set "
            "trainer.devices for the processes of each fold."
        )


def _refuse_in_a_sweep(*, is_in_process: bool, has_seeds: bool) -> None:
    """Refuse what would log several trainings or results as the one run of a trial.

    Raises:
        ValueError: If an agent of a W&B sweep started this process with such options.
    """
    if "WANDB_SWEEP_ID" in os.environ and (is_in_process or has_seeds):
        raise UserError(
            "a trial of a W&B sweep is one run, the pooled result of one experiment: leave out --in_process and "
            "--seeds. A seed can be a parameter of the sweep: seed_everything."
        )


def _folder(name: str | None, config: dict[str, Any], *, is_resumed: bool) -> tuple[Path, IO[str] | None]:
    """Choose the experiment's folder, and lock it: that of the resumed experiment, or one without any epoch."""
    output = Path(config["output_dir"])
    if is_resumed:
        if name is None:
            raise UserError("--resume needs the --name of the experiment to continue.")
        _started(output / name)
        return output / name, lock_folder(output / name)
    if name is None:
        name = made_up_name(config["model"]["net"], prefix="cv")
    folder, lock = take_folder(output / name)
    if folder.name != name:
        print(
            f"{output / name} exists, so this experiment is called {folder.name}. To continue the other: "
            + shlex.join(["deeplab", "kfold", "--resume", "--name", name, "--output_dir", str(output)])
        )
    return folder, lock


def _started(folder: Path) -> Path:
    """Return the path of the configuration of an experiment that was started.

    Raises:
        FileNotFoundError: If no experiment was started there.
    """
    files = ExperimentFolder(folder)
    config = next((seed.config for seed in files.seeds()), files.config)
    if not config.is_file():
        raise MissingFileError(f"no experiment to resume: {folder.absolute()}")
    return config


def _numbers(text: str, name: str) -> list[int]:
    """Parse comma-separated numbers of an option."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{name} must be numbers such as 0,2, got {text!r}.") from error
    if min(numbers) < 0:
        raise UserError(f"{name} must not be negative, got {text!r}.")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{name} must name each number once, got {text!r}.")
    return numbers
