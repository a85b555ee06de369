"""Record the trials of a hyperparameter search, and find out how far they are and which is the best."""

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deeplab_lightning.class_paths import init_args_of
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.experiments.attempts import Attempts
from deeplab_lightning.experiments.experiment import check_same
from deeplab_lightning.experiments.folder_choice import lock_folder
from deeplab_lightning.experiments.jobs import Job, JobState
from deeplab_lightning.experiments.search_space import Parameter, SearchSpace, nested_settings
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tables import csv_text_of_dicts


@dataclass
class Search:
    """Hold the trials of a search: trainings of one fold that differ in the searched settings alone.

    The files of the trials are the record of how far they are. So a search that was killed goes on from them, whatever
    the program that searched has forgotten.

    Attributes:
        folder: Folder of the search.
        sampler: What proposes settings, `optuna` or `random`.
        min_epochs: Number of epochs that every trial trains.
        max_epochs: Number of epochs of a trial that is never stopped.
        parameters: Key of `deeplab fit` -> its values.
        trials: Settings of each trial, by its number.
    """

    folder: Path
    sampler: str
    min_epochs: int
    max_epochs: int
    parameters: dict[str, Parameter]
    trials: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Search":
        """Read the record in a folder.

        Raises:
            MissingFileError: If there is none.
            DataError: If it is damaged.
        """
        path = ExperimentFolder(folder).search
        if not path.is_file():
            raise MissingFileError(f"{folder.absolute()}: no search was started here; `deeplab tune` starts one.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            given = content.pop("parameters").items()
            parameters = {key: Parameter(**{**own, "values": tuple(own["values"])}) for key, own in given}
            return cls(folder, parameters=parameters, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: is damaged ({error}).") from error

    @classmethod
    def prepare(cls, folder: Path, space: SearchSpace, config: Mapping[str, Any], sampler: str) -> "Search":
        """Return the search that was started in a folder, or start one.

        Args:
            folder: Folder of the search.
            space: What to search.
            config: Resolved configuration of `fit` that all trials share.
            sampler: `optuna` or `random`, for a new search.

        Raises:
            DataError: If a search was started there with other settings, or there is a folder of another trial.
        """
        files, config = ExperimentFolder(folder), {**config, "name": folder.name, "ckpt_path": None}
        own = cls(folder, sampler, space.min_epochs, config["trainer"]["max_epochs"], space.parameters)
        if not files.search.is_file():
            own._refuse_other_trials()
            files.write_config(config)
            own._write()
            return own
        found = cls.read(folder)
        found._refuse_other_trials()
        then = files.read_config()
        check_same(then, config, folder, may_move=False)
        folds = [settings["data"].get("fold") for settings in (then, config)]  # no setting of a K-fold experiment
        if folds[0] != folds[1]:
            raise DataError(
                f"{folder} was started with data.fold {folds[0]}, got {folds[1]}, and trials on different images "
                "cannot be compared. Take the same fold, or choose another --name."
            )
        for key in ("parameters", "min_epochs", "max_epochs"):
            if getattr(found, key) != getattr(own, key):
                raise DataError(f"{folder} was started with other {key}. Take the same ones, or choose another --name.")
        return found

    def _refuse_other_trials(self) -> None:
        """Raise an error if a folder is called like a trial to come and was trained, as copies of trials are.

        Raises:
            DataError: If there is one.
        """
        own = {self.run(number).path.name for number in range(len(self.trials))}
        for path in sorted(self.folder.glob("trial_*")):
            run = RunFolder(path)
            if path.name not in own and (run.config.is_file() or run.result.is_file()):
                raise DataError(
                    f"{path} is no trial of this search, which has {len(own)}. Move it away, for it would be taken for "
                    "one of those to come; or choose another --name."
                )

    def _write(self) -> None:
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_text(ExperimentFolder(self.folder).search, json.dumps(content, indent=1) + "\n")

    def add(self, values: Mapping[str, Any], config: dict[str, Any]) -> int:
        """Add a trial and write the configuration of its training.

        Args:
            values: Its settings.
            config: Resolved configuration of `fit` with them.

        Returns:
            Its number.
        """
        number = len(self.trials)
        run, config = self.run(number), copy.deepcopy(config)
        config |= {"name": run.name, "output_dir": str(self.folder), "ckpt_path": "last"}
        for arguments in init_args_of("WandbLogger", config["trainer"]["logger"]):
            arguments |= {"group": self.folder.name, "name": f"{self.folder.name}/{run.name}", "job_type": "trial"}
        run.write_job(config)
        self.trials.append(dict(values))
        self._write()
        return number

    def run(self, number: int) -> RunFolder:
        """Return the run's folder of a trial."""
        return ExperimentFolder(self.folder).trial(number)

    def states(self) -> list[JobState]:
        """Return how far the trials are: those of `run_jobs`, and `lost` for one whose search has died."""
        lock = lock_folder(self.folder)
        if lock is not None:
            lock.close()
        return [self.state(number, is_searching=lock is None) for number in range(len(self.trials))]

    def state(self, number: int, *, is_searching: bool) -> JobState:
        """Return how far a trial is.

        Args:
            number: Its number.
            is_searching: Whether the search runs.
        """
        run = self.run(number)
        state = JobState(Job(run.name, [], run.path, run.result.is_file))
        attempts, result = Attempts(run).all, run.read_result()
        if attempts:
            state.seconds = (attempts[-1].ended or time.time()) - attempts[0].started
        if result is not None:
            state.state = "stopped" if result.get("stopped_by") else "finished"
        elif attempts and attempts[-1].outcome == "failed":
            state.state, state.error = "failed", attempts[-1].reason
        elif attempts:
            state.state = "running" if is_searching and attempts[-1].outcome == "running" else "lost"
        return state

    def record_losses(self) -> list[int]:
        """Record the end of trials that nobody recorded, since their node was lost, after all have ended.

        Returns:
            Their numbers.
        """
        lost = []
        for number in range(len(self.trials)):
            attempts = Attempts(self.run(number))
            if attempts.all and attempts.all[-1].outcome == "running":
                attempts.end("lost", "its node was lost while the search stopped it")
                lost.append(number)
        return lost

    def last_miou(self, number: int) -> float | None:
        """Return the mIoU of a trial's last validation; None before the first."""
        rows = [row["val/miou"] for row in self.run(number).read_metrics() if "val/miou" in row]
        return rows[-1] if rows else None

    def best(self) -> int | None:
        """Return the number of the trial with the highest mIoU of the last epoch; None if none trained all epochs."""
        finished = {s.job.folder for s in self.states() if s.state == "finished"}
        scores = {n: self.last_miou(n) or 0.0 for n in range(len(self.trials)) if self.run(n).path in finished}
        return max(scores, key=lambda number: scores[number]) if scores else None

    def rows(self) -> list[dict[str, Any]]:
        """Return number, state, epochs, mIoU of the last validation and settings of all trials."""
        return [
            {"trial": number, "state": state.state, "epochs": len(self.run(number).read_metrics()),
             "miou": self.last_miou(number), **self.trials[number]}
            for number, state in enumerate(self.states())
        ]  # fmt: skip

    def write_table(self) -> None:
        """Write the rows of all trials to `trials.csv`."""
        write_text(ExperimentFolder(self.folder).trials, csv_text_of_dicts(self.rows()))

    def write_best_settings(self, number: int, command: str) -> str:
        """Write the settings of a trial as a configuration that overrides others, and return them.

        Args:
            number: Number of the trial.
            command: Command that uses the file, for its first line.
        """
        text = yaml.safe_dump(nested_settings(self.run(number).read_job(), self.trials[number]), sort_keys=False)
        write_text(ExperimentFolder(self.folder).best_settings, f"# {command}\n{text}")
        return text


def check_searchable(config: Mapping[str, Any], space: SearchSpace) -> None:
    """Check that trainings with a configuration can be judged after each epoch, and end.

    Args:
        config: Resolved configuration of `fit`.
        space: What is searched.

    Raises:
        UserError: If they cannot.
    """
    data, trainer = config["data"], config["trainer"]
    if (data["split"] == "folds" and data["fold"] is None) or trainer.get("limit_val_batches") == 0:
        raise UserError("deeplab tune judges trials by validation images: set data.fold, without limit_val_batches 0.")
    epochs = trainer.get("max_epochs")
    if type(epochs) is not int or epochs < space.min_epochs:
        raise UserError(f"trainer.max_epochs must be at least min_epochs ({space.min_epochs}), got {epochs}.")
