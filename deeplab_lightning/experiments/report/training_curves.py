"""Read the learning curves of experiments: mean and range over all their trainings, of every fold and seed."""

from collections import defaultdict
from contextlib import suppress

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.entries import Entry
from deeplab_lightning.experiments.report.charts import Curve, Point
from deeplab_lightning.runs import ExperimentFolder


def training_curve(entry: Entry, key: str, *, color: int, label: str = "", is_dashed: bool = False) -> Curve:
    """Return a logged figure by epoch, for each epoch that all trainings have.

    Args:
        entry: The experiment.
        key: Column of `metrics.csv`, such as `val/miou`.
        color: Place of the experiment.
        label: Name of the curve; the experiment's if empty.
        is_dashed: Whether the line is dashed.
    """
    by_epoch: dict[int, list[float]] = defaultdict(list)
    for run in (run for folder in entry.folders for run in ExperimentFolder(folder).runs()):
        with suppress(DataError):  # damaged: the others are shown
            for row in run.read_metrics():
                if key in row:
                    by_epoch[int(row["epoch"]) + 1].append(row[key])
    count = max(map(len, by_epoch.values()), default=0)
    points = [
        Point(epoch, sum(values) / count, min(values), max(values))
        for epoch, values in sorted(by_epoch.items())
        if len(values) == count
    ]
    return Curve(label or entry.label, points, color, is_dashed)
