"""Run the folds of experiments where they are to train, and pool their results."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from deeplab_lightning.commands.placement import Placement
from deeplab_lightning.commands.queueing import queue_folds, watch
from deeplab_lightning.commands.training import run_training_command, try_to_build
from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.aggregate import aggregate, print_cv
from deeplab_lightning.experiments.early_stop import Baseline, EarlyStop
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.jobs import Interrupted, Job, JobState, Launcher, run_jobs
from deeplab_lightning.experiments.launchers.local import LocalLauncher, locked
from deeplab_lightning.experiments.launchers.ray import RayLauncher
from deeplab_lightning.experiments.page import write_page
from deeplab_lightning.experiments.settings import settings_hash
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tables import table_console
from deeplab_lightning.tracking.experiment import log_cv


def run_experiments(
    experiments: Sequence[Experiment],
    placement: Placement,
    *,
    folder: Path,
    command: str,
    has_predictions: bool = False,
    resume_command: str = "run the same command again",
    is_cheap: bool = False,
    baseline: Baseline | None = None,
) -> bool:
    """Train the folds that are not finished, and pool the results.

    Args:
        experiments: Prepared experiments.
        placement: Where the folds train.
        folder: Folder of all experiments of the command.
        command: `kfold` or `grid`.
        has_predictions: Whether the out-of-fold predictions are written too.
        resume_command: Command that continues after an interruption, for the message.
        is_cheap: Whether experiments are stopped that can hardly be found better any more.
        baseline: What they have to beat; the first experiment, with its seeds, if None.

    Returns:
        Whether the trainings have ended; False if they were left in a queue, whose last job pools them.

    Raises:
        SystemExit: With status 1, if a fold failed; 130 or 143 after a signal.
    """
    if placement.slurm is not None:
        _try_to_build(experiments, is_elsewhere=True)
        is_queued = queue_folds(folder, experiments, placement, command=command, has_predictions=has_predictions)
        if is_queued and placement.is_detached:
            return False
        states = watch(folder) if ExperimentFolder(folder).queue.is_file() else []
        pool(experiments, [state for state in states if state.state != "finished"])
        return True
    if is_cheap:
        everything = _cheap_jobs(experiments, baseline, has_predictions=has_predictions)
    else:
        everything = [e.job(fold, has_predictions=has_predictions) for e in experiments for fold in e.folds]
    jobs = [job for job in everything if job.commands]
    if len(jobs) < len(everything):
        table_console().print(f"{len(everything) - len(jobs)} of {len(everything)} folds are finished already.")
    _try_to_build(experiments, is_elsewhere=placement.is_elsewhere)
    pool(experiments, _run_attached(jobs, placement, resume_command))
    return True


def _cheap_jobs(experiments: Sequence[Experiment], baseline: Baseline | None, *, has_predictions: bool) -> list[Job]:
    """Return the jobs of experiments fold by fold, with all seeds of one together; each asks whether it is wanted."""
    recipes: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        recipes.setdefault(_hash_without_seeds(experiment), []).append(experiment)
    first = next(iter(recipes.values()))
    jobs = []
    for recipe in recipes.values():
        stop = None
        if baseline is not None or recipe is not first:
            own = baseline or Baseline(first[0].folder.name, [own.folder for own in first])
            stop = EarlyStop(own, recipe)
        for fold in recipe[0].folds:
            of_fold = [experiment.job(fold, has_predictions=has_predictions) for experiment in recipe]
            jobs += of_fold if stop is None else [replace(j, is_wanted=partial(stop.is_wanted, fold)) for j in of_fold]
    return jobs


def _hash_without_seeds(experiment: Experiment) -> str:
    """Return the hash of the settings of an experiment that is not of its seeds."""
    data = {**experiment.config["data"], "seed": None}
    return settings_hash({**experiment.config, "seed_everything": None, "data": data})


def _run_attached(jobs: Sequence[Job], placement: Placement, resume_command: str) -> list[JobState]:
    """Run jobs that end with this process, and return the failed ones."""
    if placement.is_in_process:
        for job in jobs:
            if not job.is_wanted():
                continue
            job.folder.mkdir(parents=True, exist_ok=True)
            with locked(job.folder):
                for command in job.commands:
                    if command[0] != "fit" or not job.is_finished():  # by another process, while this one waited
                        run_training_command(command[0], list(command[1:]))
        return []
    if placement.ray is not None:
        return _run_in_processes(jobs, RayLauncher(placement.ray), placement.at_once or len(jobs), resume_command)
    at_once = placement.at_once or 1
    return _run_in_processes(jobs, LocalLauncher(at_once, placement.devices), at_once, resume_command)


def pool(experiments: Sequence[Experiment], failed: Sequence[JobState]) -> None:
    """Pool, print and log the folds that are finished, and name the others.

    Args:
        experiments: The experiments.
        failed: States of the folds that did not finish.

    Raises:
        SystemExit: With status 1, if there are any.
    """
    results = {}
    for experiment in experiments:
        if any(experiment.is_finished(fold) for fold in experiment.folds):
            results[experiment.folder] = aggregate(experiment.folder)
            print_cv(results[experiment.folder], experiment.folder)
            write_page_of(experiment.folder)
    for state in failed:
        _print_failure(state)
    for experiment in experiments:  # last, since it may wait for a server
        result = results.get(experiment.folder)
        if result and (result.stopped or all(experiment.is_finished(fold) for fold in experiment.folds)):
            log_cv(result, experiment.folder, experiment.config, group=experiment.group)
    if failed:
        sys.exit(1)


def write_page_of(folder: Path) -> None:
    """Write the page of an experiment, and only say so if that fails: the results are written already."""
    try:
        path = write_page(folder)
    except (UserError, OSError) as error:
        print(f"no page was written: {error}", file=sys.stderr)
    else:
        table_console().print(f"Page: {path}", soft_wrap=True, markup=False)


def _try_to_build(experiments: Sequence[Experiment], *, is_elsewhere: bool = False) -> None:
    """Build what the first fold of each experiment trains with, so that a mistake that all share is said once.

    Folds that go on from a checkpoint need no weights from elsewhere, and were built before. Seeds change nothing.

    Args:
        experiments: The experiments.
        is_elsewhere: Whether the folds train on another machine, so that this one need not have their devices.
    """
    machine = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
    tried = set()
    for experiment in experiments:
        folds = [f for f in experiment.folds if not experiment.is_finished(f)]
        new = [run for run in map(experiment.fold_folder, folds) if not run.last.is_file()]
        if new and (settings := _hash_without_seeds(experiment)) not in tried:
            tried.add(settings)
            try_to_build(["-c", str(new[0].job), *(machine if is_elsewhere else [])])


def _run_in_processes(jobs: Sequence[Job], launcher: Launcher, at_once: int, resume_command: str) -> list[JobState]:
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
