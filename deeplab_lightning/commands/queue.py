"""Run `deeplab status` and `deeplab cancel`: look at the folds in a cluster's queue, and take them out."""

import time
from pathlib import Path

from deeplab_lightning.commands.parsers import cancel_parser, status_parser
from deeplab_lightning.commands.queueing import print_status, watch
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.launchers import slurm
from deeplab_lightning.experiments.queue import Queue
from deeplab_lightning.experiments.search import Search
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import table_console

_MAX_WAIT = 60  # seconds for the jobs to end


def status(args: list[str]) -> None:
    """Show the folds in a queue, or the trials of a search.

    Raises:
        SystemExit: With status 2, if the command line is wrong; with 130, after Ctrl-C.
    """
    given = status_parser().parse_args(args)
    if ExperimentFolder(given.folder).search.is_file():
        _print_search(given.folder, is_followed=given.follow)
        return
    if given.follow:
        watch(given.folder)
    print_status(given.folder, table_console())


def _print_search(folder: Path, *, is_followed: bool) -> None:
    """Print the trials of a search, or show them until it ends."""
    console = table_console()
    states = Search.read(folder).states()
    if is_followed:
        with JobTable(console) as table:
            while any(state.state == "running" for state in states):
                table.show(states)
                time.sleep(1)
                states = Search.read(folder).states()
    console.print(JobTable(console).table(states, len(states)))


def cancel(args: list[str]) -> None:
    """Take folds out of a queue.

    Raises:
        SystemExit: With status 2, if the command line is wrong.
    """
    given = cancel_parser().parse_args(args)
    queue, tasks = Queue.read(given.folder), slurm.tasks()
    jobs = list(queue.alive(tasks).values())
    if queue.collector in tasks and tasks[queue.collector].is_alive:
        slurm.cancel([queue.collector])  # first, since it starts lost folds again
    if jobs:
        slurm.cancel(jobs)
        _wait(queue)
    text = f"{len(jobs)} folds of {given.folder} are taken out of the queue." if jobs else (
        f"no fold of {given.folder} is in the queue.")  # fmt: skip
    table_console().print(text, soft_wrap=True, markup=False)


def _wait(queue: Queue) -> None:
    """Wait until the trainings have saved their state, as long as a cluster lets them."""
    end = time.monotonic() + _MAX_WAIT
    while queue.alive(slurm.tasks()) and time.monotonic() < end:
        time.sleep(1)
