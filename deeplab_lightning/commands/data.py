"""Run `deeplab data synthetic`, `deeplab data init`, `deeplab data check` and `deeplab data show`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deeplab_lightning.commands.parsers import init_parser, show_parser, synthetic_parser
from deeplab_lightning.data.check import Part, find_warnings, single_class_problem
from deeplab_lightning.data.classes import class_mismatch
from deeplab_lightning.data.config import DATASETS, datamodule_from_args, datasets_from_args
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.datasets.base import NoImageLeftError
from deeplab_lightning.data.datasets.synthetic import write_synthetic
from deeplab_lightning.data.init import describe_folder, written_config
from deeplab_lightning.data.problems import Problem, problem_lines
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.errors import DataError
from deeplab_lightning.files import naming_errors
from deeplab_lightning.tables import table_console

_MAX_OF_KIND = 100  # lines for problems of one kind


def synthetic(args: list[str]) -> None:
    """Write the built-in data set: scenes of overlapping litter with COCO annotations."""
    given = synthetic_parser().parse_args(args)
    with naming_errors(Path(given.output)):
        path = write_synthetic(given.output, num_images=given.num_images, size=given.size, seed=given.seed)
    print(f"{given.num_images} scenes: {path}")


def init(args: list[str]) -> None:
    """Write a commented configuration for the data in a folder: COCO JSON files, or folders of images and masks.

    Every file is read once. What cannot be understood is said in one line, and no file is overwritten.

    Raises:
        FileNotFoundError: If there is no such folder.
        DataError: If the folder cannot be understood, the data cannot be used, or the configuration exists.
    """
    given = init_parser().parse_args(args)
    folder = Path(given.folder)
    config = Path(given.output or f"{folder.resolve().name}.yaml")
    if config.exists():
        raise DataError(f"{config.absolute()} exists, and no file is overwritten. Choose another --output.")
    found = describe_folder(folder, config)
    text = written_config(found)
    config.parent.mkdir(parents=True, exist_ok=True)
    with naming_errors(config), config.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
    images = ", ".join(f"{title} {_counted(len(part.dataset), 'image')}" for title, part in found.parts.items())
    num_classes = found.parts["train"].dataset.classes.num_classes
    print(f"{found.layout.reason}: {images}, {num_classes} classes")
    print(f"Written to {config}. Look it through, then: deeplab fit -c {config}")


def check(args: list[str]) -> None:
    """Read every image and mask once, and print classes, remarks, all problems and warnings.

    Labels are wrong where there is a problem, and may be wrong where there is a warning.

    Raises:
        FileNotFoundError: If a configuration file does not exist.
        DataError: If there is no data set, or one cannot be built, after the others were checked.
        SystemExit: With status 1, if there is a problem.
    """
    console = table_console()
    parts: dict[str, Part] = {}
    num_problems, errors = 0, []
    for title, found in datasets_from_args(args, "deeplab data check"):
        if isinstance(found, SegmentationDataset):
            parts[title] = Part(found, scan_dataset(found))
            num_problems += _print_part(console, title, parts[title], is_trained_on=title == f"data.{DATASETS[0]}")
        elif isinstance(found, NoImageLeftError):
            _print_problems(console, found.problems)
            num_problems += len(found.problems)
            errors.append(f"{title}: no usable image is left in {found.source}, see the problems above.")
        else:
            num_problems += 1
            errors.append(str(found))
    if not parts and not errors:
        raise DataError("deeplab data check needs data.dataset. Give the -c of the data.")
    if mismatch := class_mismatch({title: part.dataset.classes for title, part in parts.items()}):
        console.print(f"problem: {mismatch}", markup=False, soft_wrap=True)
        num_problems += 1
    warnings = find_warnings(parts)
    for line in warnings:
        console.print(f"warning: {line}", markup=False, soft_wrap=True)
    counts = f"{_counted(num_problems, 'problem')}, {_counted(len(warnings), 'warning')}."
    console.print(counts if num_problems or warnings else "No problems.")
    if errors:
        raise DataError("\n".join(errors))
    sys.exit(1 if num_problems else 0)


def show(args: list[str]) -> None:
    """Write a page that shows the data before training: images with masks, a batch, classes, sizes, folds, warnings.

    Raises:
        FileNotFoundError: If a configuration file or the data do not exist.
        DataError: If the folder holds files of others, or no image can be used.
    """
    given, rest = show_parser().parse_known_args(args)
    folder = Path(given.output)
    if folder.exists() and not (folder / "index.html").is_file() and any(folder.iterdir()):
        raise DataError(f"{folder.absolute()} holds other files. Choose another --output.")
    datamodule = datamodule_from_args(rest, "deeplab data show", on_error="skip")
    parts: dict[str, Part] = {}
    for key in DATASETS:
        if (dataset := getattr(datamodule, key)) is not None:
            parts[f"data.{key}"] = Part(dataset, scan_dataset(dataset))
    if not parts:
        raise DataError("deeplab data show needs data.dataset. Give the -c of the data.")
    problems = [problem for part in parts.values() for problem in (*part.dataset.problems, *part.statistics.problems)]
    for part in parts.values():
        part.dataset.report(part.statistics.problems)  # leaves faulty images out
    parts = {title: Part(part.dataset, scan_dataset(part.dataset)) for title, part in parts.items()}
    folds = datamodule.folds if datamodule.split == "folds" and datamodule.dataset is not None else None
    from deeplab_lightning.data.page import write_page  # draws, which takes a second to import

    lines = problem_lines(problems, max_of_kind=_MAX_OF_KIND)
    path = write_page(datamodule, parts, lines, find_warnings(parts, folds), folder)
    table_console().print(f"Written to {path}", markup=False, soft_wrap=True)


def _print_part(console: Console, title: str, part: Part, *, is_trained_on: bool) -> int:
    """Print the classes, remarks and problems of one data set, and return the number of problems."""
    heading = f"{title}: {_counted(len(part.dataset), 'image')} of {part.dataset.source}"
    console.print(heading, markup=False, soft_wrap=True)
    console.print(_class_table(part))
    for line in part.dataset.remarks():
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    problems = [*part.dataset.problems, *part.statistics.problems]
    if is_trained_on and not problems and (nothing := single_class_problem(part)):
        problems.append(nothing)
    _print_problems(console, problems)
    return len(problems)


def _class_table(part: Part) -> Table:
    """Build the table of images, objects and pixels of each class, and of the ignored pixels."""
    dataset, statistics = part
    total = max(int(statistics.image_pixels[statistics.is_valid].sum()), 1)
    table = Table()
    for column in ("id", "class", "images", "objects", "pixels"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for index, name in enumerate(dataset.classes.names):
        pixels = statistics.pixels[:, index]
        objects = str(int(statistics.objects[:, index].sum()))
        table.add_row(str(index), Text(name), str(np.count_nonzero(pixels)), objects, f"{pixels.sum() / total:.3%}")
    if statistics.ignored_share:
        values = ", ".join(map(str, statistics.ignored))
        images = np.count_nonzero(statistics.is_valid & (statistics.pixels.sum(axis=1) < statistics.image_pixels))
        table.add_row("", f"ignored ({values})", str(images), "", f"{statistics.ignored_share:.3%}")
    return table


def _print_problems(console: Console, problems: Sequence[Problem]) -> None:
    for line in problem_lines(problems, max_of_kind=_MAX_OF_KIND):
        console.print(f"problem: {line}", markup=False, soft_wrap=True)


def _counted(number: int, noun: str) -> str:
    """Write a number with its noun: `1 problem`, `2 problems`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
