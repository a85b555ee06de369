"""Run `deeplab calibrate`: fit the temperature of the probabilities on held-out images."""

import shlex
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from deeplab_lightning.commands.held_out import with_progress
from deeplab_lightning.commands.parsers import calibrate_parser
from deeplab_lightning.drawing import draw_reliability
from deeplab_lightning.errors import DataError
from deeplab_lightning.files import write_atomically
from deeplab_lightning.inference.calibration import Calibration, PixelSample, calibrated, pixels_per_image
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.metrics.calibration import NUM_BINS
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import or_null, shown, table_console


def calibrate(args: list[str]) -> None:
    """Fit the temperature of an experiment's probabilities, and write it with what it brings.

    Raises:
        FileNotFoundError: If the folder holds no finished run with a checkpoint.
        DataError: If fewer than two images have labels.
    """
    given = calibrate_parser().parse_args(args)
    found = OutOfFold(given.folder, trust=given.trust)
    groups = _groups(found, seed=given.seed)
    result = calibrated(groups)
    files, names = ExperimentFolder(given.folder), found.classes.names
    parts = {"before": result.before, "after": result.after}
    write_atomically(
        files.calibration_figure,
        lambda file: draw_reliability(
            {key: part.top for key, part in parts.items()}, result.after.classes, names, file
        ),
    )
    files.write_calibration(_document(found, result, sum(len(own.labels) for own in groups)))
    console = table_console()
    title = f"Temperature {result.temperature:.3f}; each error is of images that the temperature was not fitted on"
    console.print(title, style="bold", highlight=False)
    console.print(_table(result, names))
    console.print(f"Written to {files.calibration} and {files.calibration_figure.name}", soft_wrap=True, markup=False)
    is_ensemble = len(found.checkpoints) > 1
    source = ["--experiment", str(given.folder)] if is_ensemble else ["--ckpt_path", str(found.checkpoints[0])]
    words = ["deeplab", "predict", *source, "--images", "FOLDER", "--confidence", "--temperature"]
    console.print(shlex.join([*words, str(files.calibration)]), soft_wrap=True, markup=False)


def _groups(found: OutOfFold, *, seed: int) -> list[PixelSample]:
    """Choose pixels of each image at random, and join those of each fold; of one fold, those of two halves.

    Raises:
        DataError: If there are not two groups with labels.
    """
    count = pixels_per_image(len(found.folds), found.classes.num_classes)
    rng = np.random.default_rng(seed)
    has_folds = len(found.fold_numbers) > 1
    parts: dict[int, list[PixelSample]] = {}
    for number, image in enumerate(with_progress(found)):
        group = image.fold if has_folds else number % 2
        parts.setdefault(group, []).append(PixelSample.drawn(image.probabilities, image.mask, count, rng))
    groups = [PixelSample.joined(own) for _, own in sorted(parts.items())]
    groups = [own for own in groups if len(own.labels)]
    if len(groups) < 2:
        raise DataError(f"{found.folder}: a temperature needs at least two held-out images with labels.")
    return groups


def _document(found: OutOfFold, result: Calibration, num_pixels: int) -> dict[str, Any]:
    """Return the content of `calibration.json`."""
    names = found.classes.names

    def figures(part: Any) -> dict[str, Any]:
        per_class = {name: or_null(value) for name, value in zip(names, part.class_ece, strict=True)}
        return {"ece": or_null(part.ece), "nll": or_null(part.nll), "class_ece": per_class}

    return {
        "temperature": result.temperature,
        "cross_fitted": {
            "temperatures": [round(value, 6) for value in result.temperatures],
            "before": figures(result.before),
            "after": figures(result.after),
        },
        "num_images": len(found.folds),
        "num_pixels": num_pixels,
        "num_bins": NUM_BINS,
        "networks": found.networks(found.fold_numbers[0]),
        "folds": found.fold_numbers,
    }


def _table(result: Calibration, names: Any) -> Table:
    """Build the printed table: the error of all confidences, and of the probability of each class."""
    table = Table()
    table.add_column("expected calibration error")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    table.add_row("confidence", shown(result.before.ece), shown(result.after.ece))
    for name, *values in zip(names, result.before.class_ece, result.after.class_ece, strict=True):
        table.add_row(escape(name), *map(shown, values))
    return table
