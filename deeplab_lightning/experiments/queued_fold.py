"""Train a fold in a job of a cluster's queue, and put the job into the queue again where that helps."""

import os
import platform
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.experiments.attempts import Attempt, Attempts, Outcome
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.experiments.jobs import Interrupted, run_jobs
from deeplab_lightning.experiments.launchers import slurm
from deeplab_lightning.experiments.launchers.local import LocalLauncher
from deeplab_lightning.experiments.launchers.place import check_place
from deeplab_lightning.experiments.queue import Queue
from deeplab_lightning.runs import ExperimentFolder, RunFolder

_RESERVE = 10.0  # seconds of the grace time that are left for the records


def train_queued(queue_folder: Path, folder: Path, token: str) -> None:
    """Train a fold, from its last checkpoint if there is one, and record how that ended.

    A training that was killed starts again as often as the options allow, and one that the time limit ends as long as
    it gets on: the job is put into the queue again, perhaps for another node.

    Args:
        queue_folder: Folder of the queue's record.
        folder: Folder of the fold.
        token: Token of the submission.

    Raises:
        UserError: If this node cannot train the fold.
        SystemExit: With status 1, if it did not finish; with 143, after SIGTERM.
    """
    if not ExperimentFolder(queue_folder).queue.is_file():
        raise MissingFileError(
            f"node {_node()} does not see {queue_folder}: output_dir must be on a disk that all nodes share."
        )
    queue = Queue.read(queue_folder)
    if queue.folds.get(str(folder), {}).get("token") != token:
        print(f"{folder} belongs to a later job; this one ends.", flush=True)
        return
    attempts = Attempts(RunFolder(folder))
    losses = attempts.losses()
    attempts.begin(Attempt(token, _job(), _node(), time.time()))
    if losses > queue.options.retries:
        attempts.end("failed", f"killed or lost {losses} times")
        sys.exit(1)
    try:
        check_place(queue.submissions[token]["place"], _node())
        outcome, reason = _train(queue, folder, attempts.all[-1].started)
    except (UserError, OSError) as error:
        attempts.end("failed", str(error))
        raise
    attempts.end(outcome, reason)
    print(f"{folder}: {outcome} {reason}".rstrip(), flush=True)
    if outcome == "killed" and attempts.losses() > queue.options.retries:
        attempts.end("failed", f"{reason} ({attempts.losses()} times)")
    elif outcome in {"killed", "continued"}:
        slurm.requeue(_job())  # which ends this process
    sys.exit({"finished": 0, "stopped": 128 + signal.SIGTERM}.get(outcome, 1))


def _train(queue: Queue, folder: Path, started: float) -> tuple[Outcome, str]:
    """Train a fold, and return how that ended and why."""
    experiment, fold = _experiment(queue, folder)
    job = experiment.job(fold, has_predictions=queue.has_predictions)
    if not job.commands:
        return "finished", ""
    is_limit = []

    def note(number: int, frame: FrameType | None) -> None:
        """Stop the training as SIGTERM does, and remember that the time limit did it."""
        is_limit.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, note)
    seconds = max(queue.options.grace - _RESERVE, queue.options.grace / 2)
    try:
        [state] = run_jobs([job], LocalLauncher(), on_change=lambda states: None, stop_seconds=seconds)
    except Interrupted as stop:
        if experiment.is_done(fold, has_predictions=queue.has_predictions):
            return "finished", ""
        if not is_limit:
            return "stopped", str(stop)
        if _has_saved(folder, started):
            return "continued", "stopped by the time limit"
        return "killed", "the time limit came before the first checkpoint"
    if state.state == "finished":
        return "finished", ""
    reason = state.error or _last_line(RunFolder(folder))
    # Another process of the training that was killed, or a device that failed, shows as an error of this one.
    is_crash = _has_saved(folder, started) and not reason.startswith("error: ")
    return ("killed" if state.is_killed or is_crash else "failed"), reason


def _has_saved(folder: Path, started: float) -> bool:
    """Check whether a training has written its state since it started."""
    last = RunFolder(folder).last
    return last.is_file() and last.stat().st_mtime >= started


def _experiment(queue: Queue, folder: Path) -> tuple[Experiment, int]:
    """Return the experiment of a fold's folder, and the fold's number."""
    for experiment in queue.load_experiments():
        for fold in experiment.folds:
            if experiment.fold_folder(fold).path.absolute() == folder:
                return experiment, fold
    raise UserError(f"{ExperimentFolder(queue.folder).queue} does not name {folder}.")


def _last_line(run: RunFolder) -> str:
    lines = run.log.read_text(errors="replace").splitlines() if run.log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _job() -> str:
    """Return the id of this job."""
    return f"{os.environ.get('SLURM_ARRAY_JOB_ID', '')}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()
