"""Read the finished folds of an experiment, and say which do not belong to it and how the others differ."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_lightning.data.digest import is_other_data
from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.settings import fold_differences
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder, RunFolder

_MAX_NAMED = 4  # settings in one note


class Record(NamedTuple):
    """Hold the result of a run, and the matrices of its images at the best and at the last epoch.

    Attributes:
        run: The run's folder.
        result: Content of its `result.json`.
        best: Matrices at the best epoch; None if only their sum is known.
        last: Matrices at the last epoch; None for a run of an earlier version, or if they were not read.
    """

    run: RunFolder
    result: dict[str, Any]
    best: PerImageConfusion | None
    last: PerImageConfusion | None


def read_records(folder: Path, *, with_last: bool) -> tuple[list[Record], list[str]]:
    """Read the finished runs of an experiment, and name those that are left out: damaged, foreign or copied ones.

    Args:
        folder: Folder of the experiment, or of a single run.
        with_last: Whether the matrices of the last epoch are read as well.

    Raises:
        FileNotFoundError: If a run has no confusion matrix.
    """
    records: list[Record] = []
    held_out: dict[str, str] = {}  # key of an image -> name of its run
    notes, files = [], ExperimentFolder(folder)
    for run in files.runs():
        try:
            result = run.read_result()
            if result is not None and (fault := files.fault_of(run, result)):
                notes.append(f"{run.name} is left out: {fault}")
            elif result is not None and result["val"] is not None:
                last = run.read_last_images() if with_last else None
                record = Record(run, result, run.read_images(), last)
                names = [] if record.best is None else record.best.names
                if other := next((held_out[name] for name in names if name in held_out), None):
                    notes.append(f"{run.name} is left out: it holds images of {other}, as a copy does.")
                    continue
                held_out |= dict.fromkeys(names, run.name)
                records.append(record)
        except DataError as error:
            notes.append(f"{run.name} is left out: {error}")
    return records, notes


def mixture_notes(folder: Path, records: Sequence[Record]) -> list[str]:
    """Say in what the trainings of an experiment differ: epochs, settings, images and labels.

    Args:
        folder: Folder of the experiment, or of a single run.
        records: Its finished runs.
    """
    digests = {str(record.result.get("data_digest") or "") for record in records}
    is_mixed = any(is_other_data(one, other) for one, other in combinations(digests, 2))
    text = f"the folds of {folder.name} were trained on different images or labels, by their digests."
    return [*_epoch_notes(folder, records), *_setting_notes(folder, records), *([text] if is_mixed else [])]


def stopped_early(folder: Path, folds: Sequence[int]) -> tuple[str, str] | None:
    """Return the baseline that an experiment was stopped for, and a note; None if all planned folds are there."""
    try:
        found = ExperimentFolder(folder).read_stopped()
    except DataError as error:
        return "an unknown baseline", str(error)
    if found is None or set(found["planned"]) <= set(folds):
        return None
    return found["baseline"], (
        f"{folder.name} was stopped early after {len(found['folds'])} of {len(found['planned'])} folds: its chance to "
        f"be found better than {found['baseline']} was {found['chance']:.3f}. --resume without --cheap trains the rest."
    )


def stopped_by_search(folder: Path, results: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """Return the search that stopped a trial before its last epoch, and a note; None if it trained all epochs."""
    search = next((result["stopped_by"] for result in results if result.get("stopped_by")), None)
    if search is None:
        return None
    return str(search), (
        f"{folder.name} was stopped by the search {search} after {results[0].get('epochs')} of "
        f"{results[0].get('max_epochs')} epochs. deeplab fit -c {RunFolder(folder).job} trains the rest."
    )


def _epoch_notes(folder: Path, records: Sequence[Record]) -> list[str]:
    """Say if some folds were trained further than others."""
    epochs = [(record.result["fold"], record.result.get("max_epochs")) for record in records]
    if len({number for _, number in epochs}) < 2:
        return []
    text = ", ".join(f"fold {fold}: {number}" for fold, number in epochs)
    return [f"the folds of {folder.name} were trained for different numbers of epochs ({text})."]


def _setting_notes(folder: Path, records: Sequence[Record]) -> list[str]:
    """Say which folds have other settings than their experiment, and which run was resumed with other ones."""
    notes, config = [], {}
    with suppress(OSError, DataError):  # without configurations, nothing is known
        config = ExperimentFolder(folder).read_config()
    for run in (record.run for record in records if config):
        starts: list[dict[str, Any]] = []
        with suppress(OSError, DataError):
            starts = run.read_configs()
        differing = [fold_differences(config, start) for start in starts]
        if found := next(filter(None, differing), None):
            what = "has other settings than the experiment" if differing[0] else "was resumed with other settings"
            texts = ", ".join(f"{key} ({then} and {now})" for key, (then, now) in list(found.items())[:_MAX_NAMED])
            notes.append(f"{run.name} {what}: {texts}.")
    return notes
