"""Run `deeplab kfold`: train every fold in a process of its own, and pool the results."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from deeplab_lightning.commands.option_values import check_name
from deeplab_lightning.commands.options import option
from deeplab_lightning.commands.parsers import kfold_parser
from deeplab_lightning.commands.training import resolve_fit_config, run_training_command, try_to_build
from deeplab_lightning.errors import MissingFileError, UnavailableError, UserError
from deeplab_lightning.experiments.aggregate import aggregate, print_cv, read_cv
from deeplab_lightning.experiments.experiment import Experiment, fold_list
from deeplab_lightning.experiments.folder_choice import give_back, lock_folder, take_folder
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.jobs import Interrupted, Job, JobState, run_jobs
from deeplab_lightning.experiments.launchers.local import LocalLauncher, locked
from deeplab_lightning.experiments.page import write_page
from deeplab_lightning.experiments.settings import settings_hash
from deeplab_lightning.runs import ExperimentFolder, RunFolder, made_up_name
from deeplab_lightning.tables import table_console
from deeplab_lightning.tracking.experiment import log_cv


def kfold(args: list[str]) -> None:
    """Train the folds that are not finished, pool them, and log the result.

    Raises:
        SystemExit: With status 1, if a fold failed; 130 or 143 after SIGINT or SIGTERM; 2, if the command line is
            wrong.
    """
    given, rest = kfold_parser().parse_known_args(args)
    if given.aggregate:
        for files in ExperimentFolder(given.aggregate).seeds() or [ExperimentFolder(given.aggregate)]:
            print_cv(aggregate(files.path), files.path)
        return
    refuse_under_a_launcher()
    check_name(given.name)
    if given.resume and given.name and option(rest, "-c", "--config") is None:
        rest = ["-c", str(_started(Path(option(rest, "--output_dir") or "runs") / given.name)), *rest]
    config = resolve_fit_config(rest)
    seeds = None if given.seeds is None else list(dict.fromkeys(_numbers(given.seeds, "--seeds")))
    if given.n_folds is not None:
        config["data"]["n_folds"] = given.n_folds
    folder, lock = _folder(given.name or config["name"], config, is_resumed=given.resume)
    with lock or nullcontext():
        chosen = None if given.folds is None else _numbers(given.folds, "--folds")
        try:
            experiments = _prepare(folder, config, fold_list(chosen, config["data"]["n_folds"]), seeds)
        except BaseException:
            give_back(folder)
            raise
        run_experiments(
            experiments,
            at_once=given.jobs,
            devices=given.devices.split(",") if given.devices else [],
            has_predictions=given.predictions,
            is_in_process=given.in_process,
            resume_command=shlex.join(
                ["deeplab", "kfold", "--resume", "--name", folder.name, "--output_dir", str(folder.parent)]
            ),
        )
    if len(experiments) > 1:
        _print_seeds(folder, experiments)
        if any(run.result.is_file() for seed in ExperimentFolder(folder).seeds() for run in seed.runs()):
            _write_page(folder)


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
    finished = [e for e in experiments if all(e.is_finished(fold) for fold in e.folds)]
    values = [read_cv(experiment.folder).pooled_miou for experiment in finished]
    if len(values) > 1:
        shown = ", ".join(f"{value:.3f}" for value in values)
        table_console().print(
            f"{folder.name}: pooled mIoU of {len(values)} seeds {shown}; mean {np.mean(values):.3f}, standard "
            f"deviation {np.std(values, ddof=1):.3f}. `deeplab compare {folder} ...` compares them as one recipe.",
            soft_wrap=True,
            markup=False,
        )


def refuse_under_a_launcher() -> None:
    """Refuse to run under torchrun or srun, where every process would start all folds.

    Raises:
        RuntimeError: If a launcher started more than one process.
    """
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
    resume_command: str = "run the same command again",
) -> None:
    """Train the folds that are not finished, and pool the results.

    Args:
        experiments: Prepared experiments.
        at_once: Number of folds that train at once, at least 1.
        devices: Indices of the GPUs that the folds share.
        has_predictions: Whether the out-of-fold predictions are written too.
        is_in_process: Whether to train in this process instead of one process per fold.
        resume_command: Command that continues after an interruption, for the message.

    Raises:
        ValueError: If `at_once` is less than 1.
        SystemExit: With status 1, if a fold failed; 130 or 143 after a signal.
    """
    if at_once < 1:
        raise UserError(f"--jobs must be at least 1, got {at_once}.")
    everything = [e.job(fold, has_predictions=has_predictions) for e in experiments for fold in e.folds]
    jobs = [job for job in everything if job.commands]
    if len(jobs) < len(everything):
        table_console().print(f"{len(everything) - len(jobs)} of {len(everything)} folds are finished already.")
    _try_to_build(experiments)
    if is_in_process:
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            with locked(job.folder):
                for command in job.commands:
                    if command[0] != "fit" or not job.is_finished():  # by another process, while this one waited
                        run_training_command(command[0], list(command[1:]))
        failed = []
    else:
        failed = _run_in_processes(jobs, LocalLauncher(at_once, devices), at_once, resume_command)
    results = {}
    for experiment in experiments:
        if any(experiment.is_finished(fold) for fold in experiment.folds):
            results[experiment.folder] = aggregate(experiment.folder)
            print_cv(results[experiment.folder], experiment.folder)
            _write_page(experiment.folder)
    for state in failed:
        _print_failure(state)
    for experiment in experiments:  # last, since it may wait for a server
        if all(experiment.is_finished(fold) for fold in experiment.folds):
            log_cv(results[experiment.folder], experiment.folder, experiment.config, group=experiment.group)
    if failed:
        sys.exit(1)


def _write_page(folder: Path) -> None:
    """Write the page of an experiment, and only say so if that fails: the results are written already."""
    try:
        path = write_page(folder)
    except (UserError, OSError) as error:
        print(f"no page was written: {error}", file=sys.stderr)
    else:
        table_console().print(f"Page: {path}", soft_wrap=True, markup=False)


def _try_to_build(experiments: Sequence[Experiment]) -> None:
    """Build what the first fold of each experiment trains with, so that a mistake that all share is said once.

    Folds that go on from a checkpoint need no weights from elsewhere, and were built before. Seeds change nothing.
    """
    tried = set()
    for experiment in experiments:
        folds = [f for f in experiment.folds if not experiment.is_finished(f)]
        new = [run for run in map(experiment.fold_folder, folds) if not run.last.is_file()]
        config = {**experiment.config, "seed_everything": None, "data": {**experiment.config["data"], "seed": None}}
        if new and settings_hash(config) not in tried:
            tried.add(settings_hash(config))
            try_to_build(["-c", str(new[0].job)])


def _run_in_processes(
    jobs: Sequence[Job], launcher: LocalLauncher, at_once: int, resume_command: str
) -> list[JobState]:
    """Run each job in processes of its own, and return the failed ones.

    Raises:
        SystemExit: With status 130 or 143, after a signal.
    """
    console = table_console()
    with JobTable(console) as table:
        try:
            states = run_jobs(jobs, launcher, at_once=at_once, on_change=table.show)
        except Interrupted as stop:
            table.close()
            console.print(
                f"{stop}: no process is left running. To continue: {resume_command}", soft_wrap=True, markup=False
            )
            sys.exit(128 + stop.number)
    return [state for state in states if state.state == "failed"]


def _print_failure(state: JobState) -> None:
    """Print why a job failed, by the last line of its log if nothing else is known."""
    console, log = table_console(), RunFolder(state.job.folder).log
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    reason = state.error or (lines or ["it printed nothing"])[-1]
    console.print(f"failed: {state.job.name}: {reason}", markup=False)
    console.print(f"        {log}", soft_wrap=True, markup=False)


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
    return numbers
