"""Run `deeplab calibrate`: fit the temperature of the probabilities on held-out images."""

import json
import shlex
from pathlib import Path
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
from deeplab_lightning.inference.calibration_file import Averaged, calibration_document
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import shown, table_console


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
    networks = found.networks(found.fold_numbers[0])
    document = calibration_document(
        result,
        names,
        Averaged(networks),
        num_images=len(found.folds),
        num_pixels=sum(len(own.labels) for own in groups),
    )
    files.write_calibration({**document, "folds": found.fold_numbers})
    console = table_console()
    title = f"Temperature {result.temperature:.3f}; each error is of images that the temperature was not fitted on"
    console.print(title, style="bold", highlight=False)
    console.print(_table(result, names))
    if result.after.ece > result.before.ece:
        console.print(
            "The likelihood of the labels grows, but the error of the confidences does not fall: these networks are "
            "better used without a temperature, or trained for longer.",
            soft_wrap=True,
        )
    console.print(f"Written to {files.calibration} and {files.calibration_figure.name}", soft_wrap=True, markup=False)
    for line in _advice(found.checkpoints, networks, given.folder, files.calibration):
        console.print(line, soft_wrap=True, markup=False)


def _advice(checkpoints: list[Path], networks: int, folder: Path, file: Path) -> list[str]:
    """Say how to predict at the temperature, and how to find that of the average of all folds.

    Args:
        checkpoints: Those of all folds, in their order.
        networks: Number of them that held out the same fold.
        folder: Folder of the experiment.
        file: The temperature.
    """
    first, *others = map(str, checkpoints[:networks])
    source = ["--ckpt_path", first, *(["--ensemble", json.dumps(others)] if others else [])]
    if len(checkpoints) == networks > 1:
        source = ["--experiment", str(folder)]
    lines = [
        shlex.join(["deeplab", "predict", *source, "--images", "FOLDER", "--confidence", "--temperature", str(file)])
    ]
    if len(checkpoints) > networks:
        average = ["deeplab", "test", "--experiment", str(folder), "--calibration", str(folder / "average.json")]
        lines.append(
            f"The average of all {len(checkpoints)} networks is less sure, and held out no image. Its temperature is "
            "found on data.test_dataset, with the options of the prediction (--tta, --ensemble_weights):"
        )
        lines.append(shlex.join(average))
    return lines


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
