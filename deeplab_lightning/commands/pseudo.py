"""Run `deeplab pseudo`: label images by the networks of an experiment where these are rarely wrong."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich.table import Table

from deeplab_lightning.commands.held_out import tracked, with_progress
from deeplab_lightning.commands.parsers import pseudo_parser
from deeplab_lightning.data.batch import IGNORE_INDEX
from deeplab_lightning.data.check import Part, extra_images_held_out
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import ImageFolderDataset
from deeplab_lightning.data.scan import pixel_digest, scan_dataset
from deeplab_lightning.drawing import palette_image
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.files import write_atomically, write_text
from deeplab_lightning.inference import Views
from deeplab_lightning.inference.model import Model, load
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.inference.pseudo_labels import ClassConfidences, Cuts, cut_rows, find_cuts
from deeplab_lightning.tables import csv_text_of_dicts, table_console


def pseudo(args: list[str]) -> None:
    """Find the confidence from which on each class is right on held-out images, and label other images so.

    Raises:
        FileNotFoundError: If the experiment has no finished run, or there is no image folder.
        ValueError: If an option cannot be used, the output folder is not empty, or a fold may hold out such an image.
    """
    given = pseudo_parser().parse_args(args)
    find_cuts(ClassConfidences(1), given.precision)  # before hours are spent
    Views.parse(given.tta)
    images, output = given.images.absolute(), given.output
    if not images.is_dir():
        raise MissingFileError(f"no such folder: {images}. --images takes a folder of images.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists and is not empty; give a new folder.")
    if output.absolute() == images or images in output.absolute().parents:
        raise UserError(f"--output {output} lies in --images, which would then hold its masks. Give another folder.")
    experiment = OutOfFold(given.experiment, trust=given.trust)
    found = ImageFolderDataset([str(images)], experiment.data.image_format)
    files = mask_files(found.paths, images)
    refuse_held_out(found, experiment)
    counts = ClassConfidences(experiment.classes.num_classes)
    for image in with_progress(experiment, tta=given.tta):
        counts.add(image.probabilities, image.mask)
    cuts = find_cuts(counts, given.precision)
    model = load(experiment.checkpoints, tta=given.tta, trust=given.trust)
    labelled, unreadable = label_images(model, cuts, {path: output / "masks" / mask for path, mask in files.items()})
    overlay = output / "pseudo.yaml"
    rows = cut_rows(cuts, experiment.classes.names, labelled)
    write_text(output / "pseudo.csv", csv_text_of_dicts(rows))
    write_text(overlay, _overlay_text(images, output, experiment.classes, given, is_whole=not unreadable))
    console = table_console()
    table = Table(title="Pseudo-labels", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    for reason in unreadable:
        print(f"left out: {reason}", file=sys.stderr)
    console.print(
        f"Written to {output}. Train on them in every fold, validate on none, and compare:\n"
        f"deeplab kfold -c ... -c {shlex.quote(str(overlay))} --name {shlex.quote(f'{given.experiment.name}-pseudo')}\n"
        f"deeplab compare {shlex.quote(str(given.experiment))} ...",
        soft_wrap=True,
        markup=False,
    )


def refuse_held_out(images: ImageFolderDataset, experiment: OutOfFold) -> None:
    """Refuse images that a fold of the experiment validates or tests, as a training on their labels would.

    Args:
        images: The images to label.
        experiment: The experiment.

    Raises:
        DataError: If there is one, or a copy of it.
    """

    def digest(index: int) -> int | None:
        try:
            return pixel_digest(images.read_image(index))
        except (OSError, ValueError):  # it is left out, and named with the others
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(digest, range(len(images)))
        names = {found: name for found, name in zip(digests, images.names, strict=True) if found is not None}
    sets = experiment.data.held_out_datasets()
    held_out = {key: Part(dataset, scan_dataset(dataset, is_quiet=True)) for key, dataset in sets.items()}
    if leak := extra_images_held_out("--images", names, held_out):
        raise DataError(leak)


def mask_files(paths: Sequence[Path], images: Path) -> dict[Path, Path]:
    """Return the relative path of the mask of each image, the same as that of the image in its folder.

    Raises:
        UserError: If two images would have one mask.
    """
    files = {path: path.absolute().relative_to(images).with_suffix(".png") for path in paths}
    of_mask: dict[Path, Path] = {}
    for path, mask in files.items():
        if (other := of_mask.setdefault(mask, path)) != path:
            raise UserError(f"{other} and {path} would have one mask, {mask}. Rename one of them.")
    return files


def label_images(model: Model, cuts: Cuts, files: Mapping[Path, Path]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Write the mask of each image as a palette PNG.

    Args:
        model: Predicts the images.
        cuts: Confidence from which on a class is labelled; other pixels are void.
        files: File of the mask by that of the image.

    Returns:
        (K,) pixels that were labelled as each class, and why images could not be read.
    """
    labelled, unreadable = np.zeros(model.classes.num_classes, dtype=np.int64), []
    for path, file in tracked(files.items(), "Labelling the images", len(files)):
        try:
            image = model.read(path)
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        mask = cuts.apply(model.probabilities(image)).cpu().numpy()
        labelled += np.bincount(mask[mask != IGNORE_INDEX], minlength=len(labelled))
        write_atomically(file, partial(palette_image(mask, model.classes).save, format="PNG"))
    return labelled, unreadable


def _overlay_text(images: Path, output: Path, classes: ClassTable, given: Any, *, is_whole: bool) -> str:
    """Return the configuration that adds the labelled images to the training."""
    table: dict[str, Any] = {"names": list(classes.names), "ignore_ids": [IGNORE_INDEX]}
    if classes.colors is not None:
        table["colors"] = [list(color) for color in classes.colors]
    arguments: dict[str, Any] = {
        "root": str(output.absolute()),
        "images": str(images),
        "masks": "masks",
        "classes": table,
    }
    if not is_whole:
        arguments["on_error"] = "skip"
    path = "deeplab_lightning.data.MaskFolderDataset"
    data = {"extra_datasets+": [{"class_path": path, "init_args": arguments}]}
    return (
        f"# Labels of {given.experiment}, where {given.precision:g} of the held-out pixels of the class were right.\n"
        "# Images of the labelled set do not belong here: a network that saw them labelled them.\n"
    ) + yaml.safe_dump({"data": data}, sort_keys=False)
