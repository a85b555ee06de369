"""`deeplab data synthetic`, `deeplab data check` and `deeplab split`."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from rich.console import Console
from rich.table import Table

from deeplab_lightning.data.cache import write_atomically
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.datasets.synthetic import write_synthetic
from deeplab_lightning.data.problems import DataError
from deeplab_lightning.data.statistics import scan

_DATASETS = ("dataset", "val_dataset", "test_dataset")


def synthetic(args: list[str]) -> None:
    """Write the litter scenes."""
    parser = argparse.ArgumentParser(prog="deeplab data synthetic", description=write_synthetic.__doc__)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--num_images", type=int, default=200, help="number of pictures (200)")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels (256)")
    parser.add_argument("--seed", type=int, default=0, help="decides the scenes (0)")
    given = parser.parse_args(args)
    path = write_synthetic(given.output, num_images=given.num_images, size=given.size, seed=given.seed)
    print(f"{given.num_images} scenes: {path}")


def check(args: list[str]) -> None:
    """Read every image and mask once; print classes, what is odd and all problems.

    Raises:
        SystemExit: 1 if there is a problem.
    """
    console = Console()
    num_problems = 0
    try:
        datamodule = _build(args)
    except (DataError, FileNotFoundError) as error:
        console.print(str(error), markup=False, soft_wrap=True)
        sys.exit(1)
    for key in _DATASETS:
        dataset = getattr(datamodule, key)
        if dataset is not None:
            num_problems += _report(console, f"data.{key}", dataset)
    sys.exit(1 if num_problems else 0)


def split(args: list[str]) -> None:
    """Assign the images to folds without training, and show how even the folds are."""
    options = argparse.ArgumentParser(prog="deeplab split", add_help=False)
    options.add_argument("--output", required=True, help="folder to write folds.csv to")
    given, rest = options.parse_known_args(args)
    datamodule = _build(rest, "deeplab split", has_all_files=True)
    datamodule.setup("fit")
    path = Path(given.output) / "folds.csv"
    if path.exists():
        raise DataError(f"{path.absolute()} exists. A split is never replaced by itself: name another folder.")
    write_atomically(path, lambda file: file.write(datamodule.folds_csv().encode()))
    assert datamodule.dataset is not None
    pixels = scan(datamodule.dataset, is_quiet=True).pixels
    fold = np.array([datamodule.folds[name] for name in datamodule.dataset.names])
    table = Table(title=f"{datamodule.n_folds} folds of {datamodule.dataset.source}", title_justify="left")
    for column in ("class", "images per fold", "share of the pixels per fold"):
        table.add_column(column)
    for index, name in enumerate(datamodule.classes.names):
        parts = [pixels[fold == k, index] for k in range(datamodule.n_folds)]
        total = max(int(pixels[:, index].sum()), 1)
        shares = " ".join(f"{part.sum() / total:6.1%}" for part in parts)
        table.add_row(name, " ".join(f"{np.count_nonzero(part):4d}" for part in parts), shares)
    table.add_section()
    table.add_row("all", " ".join(f"{np.count_nonzero(fold == k):4d}" for k in range(datamodule.n_folds)), "")
    console = Console()
    console.print(table)
    console.print(f"Written to {path}", soft_wrap=True)


def _build(
    args: list[str], program: str = "deeplab data check", *, has_all_files: bool = False
) -> SegmentationDataModule:
    """The data part of the configs; bad files are collected instead of raised, unless `has_all_files`."""
    options = argparse.ArgumentParser(prog=program)
    options.add_argument("-c", "--config", action="append", default=[], help="a config; only its data part is read")
    given, overrides = options.parse_known_args(args)
    parser = ArgumentParser(prog=program)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(SegmentationDataModule, "data", sub_configs=True)
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        words = []
        for number, config in enumerate(given.config):
            if not Path(config).is_file():
                raise FileNotFoundError(f"no such config: {Path(config).absolute()}")
            content: dict[str, Any] = yaml.safe_load(Path(config).read_text()) or {}
            part = Path(scratch) / f"{number}.yaml"
            part.write_text(yaml.safe_dump({"data": content.get("data", {})}))
            words += ["--config", str(part)]
        parsed = parser.parse_args([*words, *overrides])
    for key in _DATASETS:
        if parsed.data.get(key) is not None and not has_all_files:
            parsed.data[key].init_args.on_error = "skip"
    datamodule: SegmentationDataModule = parser.instantiate_classes(parsed).data
    return datamodule


def _report(console: Console, title: str, dataset: SegmentationDataset) -> int:
    """Print what was found; the number of problems."""
    statistics = scan(dataset)
    shares = statistics.pixels / max(int(statistics.pixels.sum()), 1)
    table = Table(title=f"{title}: {len(dataset)} images of {dataset.source}", title_justify="left")
    for column, justify in (("id", "right"), ("class", "left"), ("images", "right"), ("pixels", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for index, name in enumerate(dataset.classes.names):
        images = int(np.count_nonzero(statistics.pixels[:, index]))
        table.add_row(str(index), name, str(images), f"{shares[:, index].sum():.3%}")
    console.print(table)
    for line in dataset.oddities():
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    problems = [*dataset.problems, *statistics.problems]
    for problem in problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)
    console.print(f"{len(problems)} problems." if problems else "No problems.")
    return len(problems)
