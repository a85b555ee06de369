"""Run `deeplab data synthetic` and `deeplab data check`."""

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from deeplab_lightning.commands.options import OptionParser, description
from deeplab_lightning.data.config import DATASETS, datamodule_from_args
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.datasets.synthetic import write_synthetic
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.files import naming_errors
from deeplab_lightning.tables import table_console


def synthetic(args: list[str]) -> None:
    """Write the built-in data set: scenes of overlapping litter with COCO annotations."""
    parser = OptionParser(prog="deeplab data synthetic", description=description(synthetic))
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--num_images", type=int, default=200, help="number of images (200)")
    parser.add_argument("--size", type=int, default=256, help="height and width of the images in pixels (256)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (0)")
    given = parser.parse_args(args)
    with naming_errors(Path(given.output)):
        path = write_synthetic(given.output, num_images=given.num_images, size=given.size, seed=given.seed)
    print(f"{given.num_images} scenes: {path}")


def check(args: list[str]) -> None:
    """Read every image and mask once, and print classes, remarks and all problems.

    Raises:
        FileNotFoundError: If a configuration file or the data do not exist.
        SystemExit: With status 1, if there is a problem.
    """
    console = table_console()
    num_problems = 0
    datamodule = datamodule_from_args(args, "deeplab data check", on_error="skip")
    for key in DATASETS:
        dataset = getattr(datamodule, key)
        if dataset is not None:
            num_problems += _report(console, f"data.{key}", dataset)
    sys.exit(1 if num_problems else 0)


def _report(console: Console, title: str, dataset: SegmentationDataset) -> int:
    """Print the findings of one data set, and return the number of problems."""
    statistics = scan_dataset(dataset)
    shares = statistics.pixels / max(int(statistics.pixels.sum()), 1)
    table = Table(title=f"{title}: {len(dataset)} images of {dataset.source}", title_justify="left")
    for column, justify in (
        ("id", "right"),
        ("class", "left"),
        ("images", "right"),
        ("objects", "right"),
        ("pixels", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for index, name in enumerate(dataset.classes.names):
        images = int(np.count_nonzero(statistics.pixels[:, index]))
        objects = int(statistics.objects[:, index].sum())
        table.add_row(str(index), name, str(images), str(objects), f"{shares[:, index].sum():.3%}")
    console.print(table)
    for line in dataset.remarks():
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    problems = [*dataset.problems, *statistics.problems]
    for problem in problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)
    console.print(f"{len(problems)} problems." if problems else "No problems.")
    return len(problems)
