"""Run what the jobs in a cluster's queue run: train one fold, and pool the results at the end."""

from pathlib import Path

from deeplab_lightning.commands.queueing import submit
from deeplab_lightning.experiments.launchers import slurm
from deeplab_lightning.experiments.queue import Queue, QueueStates
from deeplab_lightning.experiments.queued_fold import train_queued
from deeplab_lightning.runs import RunFolder


def queued_fold(args: list[str]) -> None:
    """Train one fold: what a job of the queue runs.

    Args:
        args: Folder of the queue's record, folder of the fold, and token of the submission.
    """
    queue, fold, token = args
    train_queued(Path(queue), Path(fold), token)


def queued_end(args: list[str]) -> None:
    """Start again the folds that the cluster lost, or pool the results: what the last job of the queue runs.

    Args:
        args: Folder of the queue's record.

    Raises:
        SystemExit: With status 1, if a fold failed.
    """
    from deeplab_lightning.commands.folds import pool  # slow to import, and a fold needs none of them
    from deeplab_lightning.commands.grid import compare_grid
    from deeplab_lightning.commands.kfold import finish_seeds

    [folder] = map(Path, args)
    queue = Queue.read(folder)
    states = QueueStates(folder).read(slurm.tasks())
    if lost := [RunFolder(state.job.folder) for state in states if state.state == "lost"]:
        submit(queue, lost)
        return
    experiments = queue.load_experiments()
    finish = compare_grid if queue.command == "grid" else finish_seeds
    try:
        pool(experiments, [state for state in states if state.state != "finished"])
    finally:
        finish(folder, experiments)
