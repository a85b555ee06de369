"""Run `deeplab split`: assign images to folds without training, and show how even the folds are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from deeplab_lightning.commands.parsers import split_parser
from deeplab_lightning.data.config import datamodule_from_args
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.folds import FoldMethod, stratified_folds
from deeplab_lightning.data.folds.balance import Balance, UnbalanceableClass, fold_balance, unbalanceable_classes
from deeplab_lightning.drawing import draw_balance
from deeplab_lightning.errors import DataError
from deeplab_lightning.files import naming_errors
from deeplab_lightning.runs import SplitFolder
from deeplab_lightning.tables import or_null, table_console

_MAX_GROUPS = 5  # names that are printed


def split(args: list[str]) -> None:
    """Assign the images to folds without training, and show how even the folds are.

    Raises:
        DataError: If the folder already holds folds, or the configuration has an official split.
    """
    given, rest = split_parser().parse_known_args(args)
    folder = SplitFolder(given.output)
    if folder.folds.exists():
        raise DataError(f"{folder.folds.absolute()} exists, and a split is never overwritten. Choose another folder.")
    datamodule = datamodule_from_args(rest, "deeplab split")
    if datamodule.dataset is None or datamodule.split != "folds":
        raise DataError("deeplab split needs data.dataset and data.split: folds; an official split has no folds.")
    if datamodule.exact_areas:
        datamodule.prepare_data()
        datamodule.setup("fit")
    balances = _balances(datamodule)
    found = _unbalanceable(datamodule)
    _write(folder, datamodule, balances, found)
    _print(datamodule, balances if given.compare else {_method(datamodule): datamodule.balance()}, found)
    table_console().print(
        f"Written to {folder}. Train on these folds with --data.fold_file {folder.folds}", soft_wrap=True
    )


def _balances(datamodule: SegmentationDataModule) -> dict[str, Balance]:
    """Compute the balance of the split, and of the other methods on the same images."""
    features, method = datamodule.balance_features(), _method(datamodule)
    labels = None if datamodule.groups is None else list(datamodule.fold_table.groups.values())
    balances: dict[str, Balance] = {method: datamodule.balance()}
    others: Sequence[FoldMethod] = ("balanced", "group") if labels else ("balanced", "iterstrat", "random")
    for other in others:
        if other != method:
            folds = stratified_folds(
                *features, datamodule.n_folds, groups=labels, seed=datamodule.split_seed, method=other
            )
            balances[other] = fold_balance(*features, folds, datamodule.n_folds)
    return balances


def _method(datamodule: SegmentationDataModule) -> str:
    """Name where the folds come from."""
    return datamodule.fold_method if datamodule.fold_file is None else "fold file"


def _unbalanceable(datamodule: SegmentationDataModule) -> Sequence[UnbalanceableClass]:
    """Find the classes that no split can balance."""
    table = datamodule.fold_table
    labels = None if datamodule.groups is None else list(table.groups.values())
    return unbalanceable_classes(*datamodule.balance_features(), list(table.folds.values()), datamodule.n_folds, labels)


def _write(
    folder: SplitFolder,
    datamodule: SegmentationDataModule,
    balances: Mapping[str, Balance],
    found: Sequence[UnbalanceableClass],
) -> None:
    """Write the files of the split; `folds.csv` comes last, so that it exists only with the others."""
    class_names = datamodule.foreground_names
    folder.write_balance_document(_document(datamodule, balances, found))
    sums = {method: {"objects": balance.objects, "area": balance.pixels} for method, balance in balances.items()}
    with naming_errors(folder.balance_figure):
        draw_balance(sums, class_names, folder.balance_figure)
    folder.write_splits(datamodule.folds_csv(), datamodule.balance_csv())


def _print(
    datamodule: SegmentationDataModule, balances: Mapping[str, Balance], found: Sequence[UnbalanceableClass]
) -> None:
    """Print the tables of classes and methods, and of the classes that no split can balance."""
    assert datamodule.dataset is not None
    console, class_names = table_console(), datamodule.foreground_names
    title = f"{datamodule.n_folds} folds of {datamodule.dataset.source}"
    if datamodule.groups is not None:
        sizes = Counter(datamodule.fold_table.groups.values())
        names = ", ".join(sorted(sizes)[:_MAX_GROUPS]) + (", ..." if len(sizes) > _MAX_GROUPS else "")
        text = f"{len(sizes)} groups of images, the largest of {max(sizes.values())}: {names}"
        console.print(text, markup=False, soft_wrap=True)
    console.print(_class_table(balances[_method(datamodule)], class_names, title))
    console.print(_method_table(balances))
    if found:
        console.print(_limit_table(found, class_names))


def _document(
    datamodule: SegmentationDataModule, balances: Mapping[str, Balance], found: Sequence[UnbalanceableClass]
) -> dict[str, Any]:
    """Build the content of `balance.json`."""
    assert datamodule.dataset is not None
    own = balances[_method(datamodule)]
    limits = {limit.class_index: limit for limit in found}
    return {
        "dataset": datamodule.dataset.source,
        "num_images": len(datamodule.dataset),
        "n_folds": datamodule.n_folds,
        "method": _method(datamodule),
        "seed": datamodule.split_seed,
        "sizes": own.sizes.tolist(),
        "divergence": [or_null(value) for value in own.divergence],
        "summary": {
            method: {key: or_null(value) for key, value in balance.summary().items()}
            for method, balance in balances.items()
        },
        "classes": {
            name: _class_figures(own, index, limits.get(index))
            for index, name in enumerate(datamodule.foreground_names)
        },
    }


def _class_figures(balance: Balance, class_index: int, limit: UnbalanceableClass | None) -> dict[str, Any]:
    """Build the part of `balance.json` on one class: a list over the folds per figure."""
    columns = {
        "images": balance.images,
        "objects": balance.objects,
        "area": balance.pixels,
        "object_deviation": balance.object_deviation,
        "area_deviation": balance.pixel_deviation,
    }
    figures: dict[str, Any] = {key: [or_null(v) for v in values[:, class_index]] for key, values in columns.items()}
    figures["limit"] = None
    if limit is not None:
        figures["limit"] = {
            "reason": limit.reason,
            "object_bound": or_null(limit.object_bound),
            "area_bound": or_null(limit.pixel_bound),
        }
    return figures


def _class_table(balance: Balance, class_names: Sequence[str], title: str) -> Table:
    """Build the table of images, objects and area of each class in each fold."""
    table = Table(title=title, title_justify="left")
    for column in ("class", "images per fold", "objects per fold", "area per fold"):
        table.add_column(column, justify="left" if column == "class" else "right")
    shares = balance.pixels / np.maximum(balance.pixels.sum(axis=0), 1e-12)
    for index, name in enumerate(class_names):
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
    """Build the table of the deviations of each method."""
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


def _limit_table(found: Sequence[UnbalanceableClass], class_names: Sequence[str]) -> Table:
    """Build the table of the classes that no split can balance."""
    title = "Classes that no split can balance: largest deviation of this split, and its lower bound"
    table = Table(title=title, title_justify="left")
    columns = ("class", "images", "groups", "objects", "object dev.", "bound", "area dev.", "bound", "why")
    for column in columns:
        table.add_column(column, justify="left" if column in {"class", "why"} else "right")
    for limit in found:
        figures = (limit.object_deviation, limit.object_bound, limit.pixel_deviation, limit.pixel_bound)
        numbers = (limit.num_images, limit.num_groups, limit.num_objects)
        deviations = ("-" if math.isnan(value) else f"{value:.2f}" for value in figures)
        table.add_row(class_names[limit.class_index], *map(str, numbers), *deviations, limit.reason)
    return table
