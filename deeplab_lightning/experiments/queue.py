"""Record which folds a cluster's queue trains, and find out how far they are."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.experiments.attempts import Attempts
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.experiments.jobs import Job, JobState
from deeplab_lightning.experiments.launchers.options import SlurmOptions
from deeplab_lightning.experiments.launchers.slurm import Task
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import ExperimentFolder


@dataclass
class Queue:
    """Hold the folds that a queue trains, and their jobs.

    A fold belongs to the submission whose token stands beside it here; a job with another token ends without training.
    So no two jobs write to one folder, and no lock is needed, which a shared file system may not have.

    Attributes:
        folder: Folder of the command that submitted them: that of an experiment, of its seeds, or of a grid.
        command: `kfold` or `grid`.
        options: What each job asks for.
        at_once: Number of jobs that run at once; all if None.
        has_predictions: Whether the held-out images are predicted as well.
        experiments: Folder of each experiment -> its `folds`, and its `group` in W&B.
        folds: Folder of each fold -> `token` of its submission and its `index` in the array.
        submissions: Token -> `id` of the array, and `place`, see `describe_place`.
        collector: Id of the job that pools the results after all others.
    """

    folder: Path
    command: str
    options: SlurmOptions
    at_once: int | None
    has_predictions: bool
    experiments: dict[str, dict[str, Any]]
    folds: dict[str, dict[str, Any]] = field(default_factory=dict)
    submissions: dict[str, dict[str, Any]] = field(default_factory=dict)
    collector: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "Queue":
        """Read the record in a folder.

        Raises:
            MissingFileError: If nothing was submitted from there.
            DataError: If the record is damaged.
        """
        path = ExperimentFolder(folder).queue
        if not path.is_file():
            raise MissingFileError(
                f"{folder.absolute()}: nothing was submitted to a queue from here; `deeplab kfold --launcher slurm` "
                "does so."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            given = content.pop("options")
            options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            return cls(folder.absolute(), options=SlurmOptions(**options), **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: is damaged ({error}).") from error

    def write(self) -> None:
        """Write the record."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_text(ExperimentFolder(self.folder).queue, json.dumps(content, indent=1) + "\n")

    def load_experiments(self) -> list[Experiment]:
        """Return the experiments, as they were prepared."""
        return [
            Experiment(Path(folder), ExperimentFolder(folder).read_config(), part["folds"], part["group"])
            for folder, part in self.experiments.items()
        ]

    def keep(self, before: "Queue", tasks: Mapping[str, Task]) -> None:
        """Take over the folds of an earlier record that wait or run.

        Args:
            before: The earlier record of the same folder.
            tasks: The scheduler's jobs, by id.
        """
        self.collector = before.collector
        for fold in before.alive(tasks):
            entry = self.folds[fold] = before.folds[fold]
            self.submissions[entry["token"]] = before.submissions[entry["token"]]
            for folder, part in before.experiments.items():
                numbers = [n for n in part["folds"] if str(ExperimentFolder(folder).fold(n).path) == fold]
                own = self.experiments.setdefault(folder, {**part, "folds": []})
                own["folds"] = sorted({*own["folds"], *numbers})

    def job_id(self, fold: str) -> str | None:
        """Return the id of a fold's job; None if it was not submitted."""
        entry = self.folds.get(fold)
        array = None if entry is None else self.submissions[entry["token"]]["id"]
        return None if array is None or entry is None else f"{array}_{entry['index']}"

    def alive(self, tasks: Mapping[str, Task]) -> dict[str, str]:
        """Return the ids of the jobs that wait or run, by the folder of their fold."""
        ids = ((fold, self.job_id(fold)) for fold in self.folds)
        return {fold: job for fold, job in ids if job is not None and job in tasks and tasks[job].is_alive}


class QueueStates:
    """Find out the states of all folds in a queue's record, from the scheduler and from the files of the folds.

    Args:
        folder: Folder of the record, which is read each time, since the last job of a queue may submit more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._queue = Queue.read(folder)
        self._experiments = self._queue.load_experiments()
        self._finished: set[Path] = set()

    def read(self, tasks: Mapping[str, Task]) -> list[JobState]:
        """Return the states: those of `run_jobs`, and `lost` for a job that is gone and may be started again.

        Args:
            tasks: The scheduler's jobs, by id.
        """
        self._queue = Queue.read(self._folder)
        return [self._state(e, fold, tasks) for e in self._experiments for fold in e.folds]

    def has_ended(self, tasks: Mapping[str, Task]) -> bool:
        """Check whether none of the jobs waits or runs any more, among them the last one, which pools the results."""
        collector = tasks.get(self._queue.collector or "")
        return not self._queue.alive(tasks) and (collector is None or not collector.is_alive)

    def _state(self, experiment: Experiment, fold: int, tasks: Mapping[str, Task]) -> JobState:
        run = experiment.fold_folder(fold)
        name = f"{experiment.folder.name}/{run.name}"
        state = JobState(Job(name, [], run.path, lambda: experiment.is_finished(fold)))
        attempts = Attempts(run)
        if attempts.all:
            state.seconds = (attempts.all[-1].ended or time.time()) - attempts.all[0].started
        key = str(run.path.absolute())
        job = self._queue.job_id(key)
        task = None if job is None else tasks.get(job)
        if task is not None and task.is_alive:
            state.state = "waiting" if task.is_waiting else "running"
            state.place = f"{job} {task.node or f'({task.reason})'}"
        elif self._is_finished(experiment, fold):
            state.state = "finished"
        else:
            token = self._queue.folds.get(key, {}).get("token", "")
            state.state, state.error = self._ending(attempts, token, job, task)
        return state

    def _is_finished(self, experiment: Experiment, fold: int) -> bool:
        path = experiment.fold_folder(fold).path
        if path not in self._finished and experiment.is_done(fold, has_predictions=self._queue.has_predictions):
            self._finished.add(path)
        return path in self._finished

    def _ending(self, attempts: Attempts, token: str, job: str | None, task: Task | None) -> tuple[str, str]:
        """Return state and reason of a fold that is not finished and whose job is gone."""
        own = attempts.of(token)
        is_cancelled = task is not None and task.state == "CANCELLED"
        if not own:
            return ("stopped", "cancelled in the queue") if is_cancelled else ("failed", _engine_log(self._queue, job))
        last = own[-1]
        if last.outcome in {"failed", "finished"}:
            return "failed", last.reason or "it ended without a result"
        is_taken = task is not None and task.state in {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"}
        if is_cancelled or (last.outcome == "stopped" and not is_taken):
            return "stopped", last.reason
        reason = f"{last.reason or 'lost'} on {last.node} (job {last.job}{f', {task.state}' if task else ''})"
        return ("lost" if attempts.losses() <= self._queue.options.retries else "failed"), reason


def _engine_log(queue: Queue, job: str | None) -> str:
    """Return the last line that a job printed which began no training."""
    log = ExperimentFolder(queue.folder).queue_logs / f"{job}.log"
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    last = next((line for line in reversed(lines) if line.strip()), "it never started")
    return f"{last.strip()} (job {job}, {log})"
