"""`deeplab kfold`: the same training on every fold, one process each, and what they say together."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeplab_lightning.commands.options import option
from deeplab_lightning.commands.training import resolve_fit_config, run_training_command
from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError
from deeplab_lightning.experiments.aggregate import aggregate, print_cv
from deeplab_lightning.experiments.experiment import Experiment, fold_list
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.jobs import Interrupted, JobState, LocalLauncher, run_jobs
from deeplab_lightning.files import unused_path
from deeplab_lightning.runs import ExperimentFolder, RunFolder, made_up_name
from deeplab_lightning.tables import table_console
from deeplab_lightning.tracking.experiment import log_cv


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
        raise UnavailableError(
            "deeplab kfold starts one process per fold itself; run it without torchrun or srun, and set "
            "trainer.devices for the processes of each fold."
        )


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
        raise UserError(f"--jobs must be at least 1, got {at_once}.")
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
        log = RunFolder(state.job.folder).log
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
            raise UserError("--resume needs the --name of the experiment to go on with.")
        return _begun(output / name).parent
    if name is None:
        name = made_up_name(config["model"]["net"], prefix="cv")
    return unused_path(output / name)


def _begun(folder: Path) -> Path:
    """Return the configuration of an experiment that was begun."""
    config = ExperimentFolder(folder).config
    if not config.is_file():
        raise MissingFileError(f"no experiment to resume: {folder.absolute()}")
    return config


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--folds must be numbers such as 0,2, got {text!r}.") from error
