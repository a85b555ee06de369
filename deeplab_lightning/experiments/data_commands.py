"""`deeplab data synthetic`, `deeplab data check` and `deeplab split`."""

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from rich.console import Console
from rich.table import Table

from deeplab_lightning.console import table_console
from deeplab_lightning.data.balance import Balance, fold_balance
from deeplab_lightning.data.cache import write_atomically
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.datasets.synthetic import write_synthetic
from deeplab_lightning.data.folds import FoldMethod, stratified_folds
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
    console = table_console()
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
    """Assign the images to folds without training, and show how even the folds are.

    Writes `folds.csv` (image, group, fold), to be named by `data.fold_file`, and `balance.csv` (per fold
    and class: images, objects, area and their deviations).
    """
    options = argparse.ArgumentParser(prog="deeplab split", add_help=False)
    options.add_argument("--output", required=True, help="folder to write folds.csv and balance.csv to")
    options.add_argument("--compare", action="store_true", help="show the other methods beside")
    given, rest = options.parse_known_args(args)
    path = Path(given.output) / "folds.csv"
    if path.exists():
        raise DataError(f"{path.absolute()} exists. A split is never replaced by itself: name another folder.")
    datamodule = _build(rest, "deeplab split", has_all_files=True)
    if datamodule.dataset is None or datamodule.split != "folds":
        raise DataError("deeplab split needs data.dataset and data.split: folds; an official split is what it is.")
    datamodule.setup("fit")
    statistics, names = scan(datamodule.dataset, is_quiet=True), datamodule.dataset.names
    first = 1 if datamodule.classes.names[0] == "background" else 0
    measured = statistics.objects[:, first:], statistics.areas[:, first:]
    own = fold_balance(*measured, [datamodule.folds[name] for name in names], datamodule.n_folds)
    balances: dict[str, Balance] = {datamodule.fold_method: own}
    if given.compare:
        groups = [datamodule.groups[name] for name in names] if datamodule.group_pattern else None
        methods: tuple[FoldMethod, ...] = ("balanced", "group") if groups else ("balanced", "iterstrat", "random")
        for method in methods:
            folds = stratified_folds(
                *measured, datamodule.n_folds, groups=groups, seed=datamodule.split_seed, method=method
            )
            balances[method] = fold_balance(*measured, folds, datamodule.n_folds)
    write_atomically(path, lambda file: file.write(datamodule.folds_csv().encode()))
    classes = datamodule.classes.names[first:]
    write_atomically(path.with_name("balance.csv"), lambda file: file.write(_balance_csv(own, classes).encode()))
    console = table_console()
    console.print(_class_table(own, classes, f"{datamodule.n_folds} folds of {datamodule.dataset.source}"))
    console.print(_method_table(balances))
    console.print(f"Written to {path}", soft_wrap=True)


def _balance_csv(balance: Balance, classes: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fold", "class", "images", "objects", "area", "object_deviation", "area_deviation"])
    columns = (balance.images, balance.objects, balance.pixels, balance.object_deviation, balance.pixel_deviation)
    for fold in range(len(balance.sizes)):
        for index, name in enumerate(classes):
            writer.writerow([fold, name, *(f"{values[fold, index]:.6g}" for values in columns)])
    return text.getvalue()


def _class_table(balance: Balance, classes: Sequence[str], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("class", "images per fold", "objects per fold", "area per fold"):
        table.add_column(column, justify="left" if column == "class" else "right")
    shares = balance.pixels / np.maximum(balance.pixels.sum(axis=0), 1e-12)
    for index, name in enumerate(classes):
        table.add_row(
            name,
            " ".join(f"{value:.0f}" for value in balance.images[:, index]),
            " ".join(f"{value:.0f}" for value in balance.objects[:, index]),
            " ".join(f"{value:.0%}" for value in shares[:, index]),
        )
    table.add_section()
    table.add_row("all images", " ".join(map(str, balance.sizes)), "", "")
    return table


def _method_table(balances: Mapping[str, Balance]) -> Table:
    title = "Deviation from the even share, over the classes with at least as many images as folds"
    table = Table(title=title, title_justify="left")
    for column in ("method", "objects mean", "max", "area mean", "max", "JSD max", "fold sizes"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, balance in balances.items():
        figures = balance.summary()
        names = ("object_mean", "object_max", "pixel_mean", "pixel_max", "divergence_max")
        sizes = f"{figures['size_min']:.0f}-{figures['size_max']:.0f}"
        table.add_row(method, *(f"{figures[name]:.4f}" for name in names), sizes)
    return table


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
    for line in dataset.oddities():
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    problems = [*dataset.problems, *statistics.problems]
    for problem in problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)
    console.print(f"{len(problems)} problems." if problems else "No problems.")
    return len(problems)
