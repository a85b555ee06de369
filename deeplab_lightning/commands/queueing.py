"""Put folds into a cluster's queue, watch them there, and start again those that the cluster lost."""

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from deeplab_lightning.commands.placement import Placement
from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.experiments.attempts import Attempts
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.jobs import JobState
from deeplab_lightning.experiments.launchers import slurm
from deeplab_lightning.experiments.launchers.place import describe_place
from deeplab_lightning.experiments.launchers.ray import connect
from deeplab_lightning.experiments.queue import Queue, QueueStates
from deeplab_lightning.files import remove_if_empty
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tables import table_console

_POLL_SECONDS = 5.0  # between two questions to the scheduler
_REDRAW_SECONDS = 0.5


def check_cluster(placement: Placement) -> None:
    """Check that the cluster answers on which folds are to train, and connect to one of Ray.

    Raises:
        UnavailableError: If it does not.
    """
    if placement.slurm is not None:
        slurm.tasks()
    if placement.ray is not None:
        connect(placement.ray)


def refuse_queued(folder: Path, placement: Placement) -> None:
    """Refuse to train folds on this machine that are in a queue.

    Args:
        folder: Folder of the experiment or the grid.
        placement: Where the folds are to train.

    Raises:
        UserError: If there are any, or the queue does not answer.
    """
    if placement.slurm is not None or not ExperimentFolder(folder).queue.is_file():
        return
    queue = Queue.read(folder)
    try:
        alive = queue.alive(slurm.tasks())
    except UnavailableError as error:
        raise UnavailableError(
            f"{ExperimentFolder(folder).queue} names jobs of a queue that cannot be asked here: {error} Delete the "
            "file if none of them is left."
        ) from error
    if alive:
        fold, job = next(iter(alive.items()))
        raise UserError(
            f"{len(alive)} folds of {folder} are in a queue, such as {Path(fold).name} as job {job}. Resume with "
            f"--launcher slurm, which leaves them there, or stop them first: deeplab cancel {folder}"
        )


def queue_folds(
    folder: Path, experiments: Sequence[Experiment], placement: Placement, *, command: str, has_predictions: bool
) -> bool:
    """Put the folds into the queue that are neither finished nor there already, and say where they are.

    Args:
        folder: Folder of the experiment, of its seeds, or of the grid.
        experiments: Prepared experiments.
        placement: What each fold asks for.
        command: `kfold` or `grid`.
        has_predictions: Whether the held-out images are predicted as well.

    Returns:
        Whether the queue holds any of them now.

    Raises:
        UnavailableError: If the scheduler refuses them.
    """
    assert placement.slurm is not None
    folder = folder.absolute()
    parts = {str(e.folder.absolute()): {"folds": list(e.folds), "group": e.group} for e in experiments}
    queue = Queue(folder, command, placement.slurm, placement.at_once, has_predictions, parts)
    if ExperimentFolder(folder).queue.is_file():
        queue.keep(Queue.read(folder), slurm.tasks())
    runs = []
    for experiment, fold in ((e, fold) for e in experiments for fold in e.folds):
        run = experiment.fold_folder(fold)
        if str(run.path.absolute()) in queue.folds:
            continue
        if experiment.job(fold, has_predictions=has_predictions).commands:
            runs.append(run)
    total, kept = sum(len(part["folds"]) for part in parts.values()), len(queue.folds)
    if done := total - len(runs) - kept:
        table_console().print(f"{done} of {total} folds are finished already.")
    for run in runs:
        Attempts(run).clear()
    if runs:
        submit(queue, runs)
    if runs or kept:
        ids = ", ".join(str(submission["id"]) for submission in queue.submissions.values())
        were = f", {kept} of which were there" if kept else ""
        table_console().print(
            f"{len(runs) + kept} folds are in the queue{were} (job {ids}). To watch them: deeplab status {folder}; to "
            f"stop them: deeplab cancel {folder}",
            soft_wrap=True,
            markup=False,
        )
    return bool(runs or kept)


def submit(queue: Queue, runs: Sequence[RunFolder]) -> None:
    """Submit folds, and a last job that pools the results when all have ended.

    Args:
        queue: The record, which is completed and written.
        runs: Folders of the folds.

    Raises:
        UnavailableError: If the scheduler refuses them; then the record stays as it was.
    """
    files, token = ExperimentFolder(queue.folder), secrets.token_hex(4)
    before = files.queue.read_bytes() if files.queue.is_file() else None
    folds = [str(run.path.absolute()) for run in runs]
    queue.submissions[token] = {"id": None, "place": describe_place()}
    queue.folds |= {fold: {"token": token, "index": index} for index, fold in enumerate(folds)}
    files.queue_logs.mkdir(exist_ok=True)
    queue.write()  # before the jobs, which read it
    try:
        script = slurm.script(
            queue.options,
            [_command("queued-fold", str(queue.folder), fold, token) for fold in folds],
            name=f"deeplab-{queue.folder.name}",
            log=_log(queue, "%A_%a"),
            at_once=queue.at_once,
        )
        queue.submissions[token]["id"] = slurm.submit(script)
    except UserError:
        if before is None:
            files.queue.unlink()
            remove_if_empty(files.queue_logs)
        else:
            files.queue.write_bytes(before)
        raise
    queue.write()
    _submit_collector(queue)


def _submit_collector(queue: Queue) -> None:
    """Submit the job that pools the results, in place of an earlier one."""
    arrays = {entry["token"] for entry in queue.folds.values()}
    ids = ":".join(str(queue.submissions[token]["id"]) for token in arrays)
    script = slurm.script(
        replace(queue.options, gpus=0, cpus=1),
        [_command("queued-end", str(queue.folder))],
        name=f"deeplab-{queue.folder.name}-end",
        log=_log(queue, "%j"),
        after=ids,
    )
    tasks, old = slurm.tasks(), queue.collector
    try:
        queue.collector = slurm.submit(script)
    except UnavailableError as error:
        print(f"no job that pools the results could be queued: {error}. --resume pools them.", file=sys.stderr)
        return
    queue.write()
    if old in tasks and tasks[old].is_waiting:
        slurm.cancel([old])


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "deeplab_lightning", *words]


def _log(queue: Queue, name: str) -> Path:
    folder = str(ExperimentFolder(queue.folder).queue_logs).replace("%", "%%")
    return Path(folder) / f"{name}.log"


def watch(folder: Path) -> list[JobState]:
    """Show the folds of a queue until all have ended and are pooled, and return their states.

    Args:
        folder: Folder of the queue's record.

    Raises:
        SystemExit: With status 130, after Ctrl-C, which leaves the jobs where they are.
    """
    console, states = table_console(), QueueStates(folder)
    tasks = slurm.tasks()
    with JobTable(console) as table:
        try:
            while True:
                shown = states.read(tasks)
                table.show(shown)
                if states.has_ended(tasks):
                    return shown
                _wait(table, shown)
                tasks = _ask(tasks)
        except KeyboardInterrupt:
            table.close()
            console.print(
                f"the folds stay in the queue. To watch them: deeplab status {folder} --follow; to stop them: deeplab "
                f"cancel {folder}",
                soft_wrap=True,
                markup=False,
            )
            sys.exit(130)


def _wait(table: JobTable, states: Sequence[JobState]) -> None:
    """Wait for the next question to the scheduler, and meanwhile show what the trainings write."""
    end = time.monotonic() + _POLL_SECONDS
    while time.monotonic() < end:
        time.sleep(_REDRAW_SECONDS)
        table.show(states)


def _ask(before: dict[str, slurm.Task]) -> dict[str, slurm.Task]:
    """Ask the scheduler; one that does not answer for a while changes nothing."""
    try:
        return slurm.tasks()
    except UnavailableError:
        return before


def print_status(folder: Path, console: Console) -> None:
    """Print the table of a queue once, and below it why folds failed or were lost.

    Args:
        folder: Folder of the queue's record.
        console: Console to print to.
    """
    states = QueueStates(folder).read(slurm.tasks())
    console.print(JobTable(console).table(states, len(states)))
    for state in states:
        if state.error:
            console.print(f"{state.state}: {state.job.name}: {state.error}", soft_wrap=True, markup=False)
