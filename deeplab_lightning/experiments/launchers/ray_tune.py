"""Let Ray Tune propose the settings of trials, train them on its cluster, and stop the worst between their epochs."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.experiments.launchers.options import RayOptions
from deeplab_lightning.experiments.launchers.place import describe_place
from deeplab_lightning.experiments.launchers.ray import TrainingKilled, submitted_environment
from deeplab_lightning.experiments.samplers import make_sampler
from deeplab_lightning.experiments.search import Search
from deeplab_lightning.experiments.trial import MAX_END, Trial

REDUCTION = 3
"""Of the trials that reach a rung, one in this many goes on (3 or 4 in Li et al. 2020, "A System for Massively
Parallel Hyperparameter Tuning", arXiv:1810.05934)."""
_NUMBER = "trial"  # key of Tune's settings


def check_tune() -> None:
    """Check that the packages of a search are installed.

    Raises:
        UnavailableError: If one is missing.
    """
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            "deeplab tune needs the package ray[tune]: pip install 'deeplab_lightning[tune]'"
        ) from error


def check_resources(options: RayOptions) -> None:
    """Check that a node of the cluster has what a trial asks for, since it would wait for ever otherwise.

    Raises:
        UserError: If none has.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= options.cpus and n.get("GPU", 0) >= options.gpus for n in nodes):
        most = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise UserError(
            f"a trial asks for {options.cpus} CPUs and {options.gpus} GPUs, and the nodes have {most}. Set "
            "--launcher.cpus and --launcher.gpus."
        )


def run_search(
    search: Search,
    num_trials: int,
    options: RayOptions,
    *,
    at_once: int | None,
    resolve: Callable[[Mapping[str, Any]], dict[str, Any]],
    on_step: Callable[[], object],
    on_loss: Callable[[int, str], object],
) -> None:
    """Run a search on the cluster that this process is connected to, until all trials have ended.

    The trials that it has tried before are proposed again first, and hand out what they have trained, so that ASHA and
    the sampler know again what they knew.

    Args:
        search: The search.
        num_trials: Number of trials in all.
        options: What each trial asks for.
        at_once: Number of trials at once; as many as the cluster holds if None.
        resolve: Function that returns the configuration of `fit` with the settings of a trial.
        on_step: Function that is called often.
        on_loss: Function that is called with the number of a trial that was killed or lost, and what follows.
    """
    from ray import tune

    scratch = search.folder.absolute() / ".ray"  # what Tune writes; the folders of the trials are the record
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        with _variables(
            TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0",
            TUNE_PRINT_ALL_TRIAL_ERRORS="0",
        ):  # fmt: skip
            for _ in range(1 + options.retries):
                tune.run(  # not Tuner, which pickles the sampler and what shows the trials
                    _trainable(search), name="trials", storage_path=str(scratch), verbose=0,
                    callbacks=[_callback(on_step, on_loss)], metric="miou", mode="max", num_samples=num_trials,
                    max_concurrent_trials=at_once, search_alg=_searcher(search, resolve), scheduler=_scheduler(search),
                    raise_on_failed_trial=False, resources_per_trial={"cpu": options.cpus, "gpu": options.gpus},
                    max_failures=options.retries,
                )  # fmt: skip
                # Tune forgets a trial whose node is lost while it is stopped. It has no result, so it starts again.
                lost = search.record_losses()
                for number in lost:
                    on_loss(number, "was lost with its node while it was stopped")
                if not lost:
                    break
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scheduler(search: Search) -> Any:
    """Return ASHA, in a search that gives trainings time to end."""
    from ray import tune

    class PatientScheduler(tune.schedulers.ASHAScheduler):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            # Once all trials are decided, Tune kills those that need more than 10 s to stop, and has no option for it.
            tune_controller._tune_controller._actor_force_cleanup_timeout = MAX_END
            super().on_trial_add(tune_controller, trial)

    return PatientScheduler(
        time_attr="epoch", max_t=search.max_epochs, grace_period=search.min_epochs, reduction_factor=REDUCTION,
        stop_last_trials=False,
    )  # fmt: skip


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _trainable(search: Search) -> Any:
    """Return the class whose objects train the trials of a search on the nodes of a cluster."""
    from ray import tune

    folder, name, epochs = search.folder.absolute(), search.folder.name, search.max_epochs
    environment, place = submitted_environment(), describe_place()

    class TrialActor(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            run = folder / f"trial_{config[_NUMBER]}"
            self._trial = Trial(run, name, epochs, environment, place)

        def step(self) -> dict[str, Any]:
            return self._trial.next_epoch()

        def cleanup(self) -> None:
            self._trial.stop()

    return TrialActor


def _callback(on_step: Callable[[], object], on_loss: Callable[[int, str], object]) -> Any:
    from ray import tune

    class Watch(tune.Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            on_step()

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            on_loss(trial.config[_NUMBER], f"starts again: {_reason(trial)}")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            on_loss(trial.config[_NUMBER], f"is given up: {_reason(trial)}")

    return Watch()


def _reason(trial: Any) -> str:
    """Return in one line why a trial of Tune did not go on."""
    # The local file: `trial.get_error()` reads a copy, which is made later.
    line = Path(trial.error_file).read_text(encoding="utf-8").strip().rpartition("\n")[2].strip()
    return line.rpartition(f"{TrainingKilled.__name__}: ")[2]


def _searcher(search: Search, resolve: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """Return what proposes settings: those of the search's trials again, then new ones, which become its trials."""
    from ray.tune.search import Searcher

    sampler = make_sampler(search.sampler, search.parameters, search.trials)

    class RecordedSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="miou", mode="max")
            self._numbers: dict[str, int] = {}  # by Tune's id of a trial

        def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> dict[str, Any] | str:
            proposed = sampler.propose()
            if proposed is None:
                return str(Searcher.FINISHED)
            number = self._numbers[trial_id] = len(self._numbers)
            if number == len(search.trials):
                search.add(proposed, resolve(proposed))
            return {_NUMBER: number}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            sampler.report(self._numbers[trial_id], result["epoch"], result["miou"])

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            is_whole = result is not None and result["epoch"] >= search.max_epochs
            sampler.end(self._numbers[trial_id], result["miou"] if result is not None and is_whole else None)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # the folder of the search is the record

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError

    return RecordedSearcher()
