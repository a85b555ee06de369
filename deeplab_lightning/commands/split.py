"""`deeplab split`: folds without training, and how even they are."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from deeplab_lightning.data.config import datamodule_from_args
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.folds import FoldMethod, stratified_folds
from deeplab_lightning.data.folds.balance import Balance, UnbalanceableClass, fold_balance, unbalanceable_classes
from deeplab_lightning.drawing import draw_balance
from deeplab_lightning.errors import DataError
from deeplab_lightning.files import write_text
from deeplab_lightning.tables import or_null, table_console


def split(args: list[str]) -> None:
    """Assign the images to folds without training, and show how even the folds are.

    Writes `folds.csv` (image, group, fold), to be named by `data.fold_file`; `balance.csv` and
    `balance.json` (per fold and class: images, objects, area and their deviations); and `balance.png`
    (the deviations of this split beside those of other methods).

    Raises:
        DataError: If the folder holds folds already, or the configuration has an official split.
    """
    options = argparse.ArgumentParser(prog="deeplab split", add_help=False)
    options.add_argument("--output", required=True, help="folder to write to")
    options.add_argument("--compare", action="store_true", help="show the other methods' figures beside")
    given, rest = options.parse_known_args(args)
    folder = Path(given.output)
    if (folder / "folds.csv").exists():
        where = (folder / "folds.csv").absolute()
        raise DataError(f"{where} exists. A split is never replaced by itself: name another folder.")
    datamodule = datamodule_from_args(rest, "deeplab split")
    if datamodule.dataset is None or datamodule.split != "folds":
        raise DataError("deeplab split needs data.dataset and data.split: folds; an official split is what it is.")
    if datamodule.exact_areas:
        datamodule.prepare_data()
        datamodule.setup("fit")
    table, classes, method = datamodule.fold_table, datamodule.foreground_names, datamodule.fold_method
    measured, folds = datamodule.balance_features(), list(table.folds.values())
    labels = None if datamodule.groups is None else list(table.groups.values())
    balances: dict[str, Balance] = {method: datamodule.balance()}
    others: Sequence[FoldMethod] = ("balanced", "group") if labels else ("balanced", "iterstrat", "random")
    for other in others:
        if other != method:
            other_folds = stratified_folds(
                *measured, datamodule.n_folds, groups=labels, seed=datamodule.split_seed, method=other
            )
            balances[other] = fold_balance(*measured, other_folds, datamodule.n_folds)
    found = unbalanceable_classes(*measured, folds, datamodule.n_folds, labels)
    document = _document(datamodule, balances, found)
    write_text(folder / "balance.csv", balances[method].to_csv(classes))
    write_text(folder / "balance.json", json.dumps(document, indent=1) + "\n")
    sums = {method: {"objects": balance.objects, "area": balance.pixels} for method, balance in balances.items()}
    draw_balance(sums, classes, folder / "balance.png")
    write_text(folder / "folds.csv", table.to_csv())
    console = table_console()
    console.print(_class_table(balances[method], classes, f"{datamodule.n_folds} folds of {datamodule.dataset.source}"))
    console.print(_method_table(balances if given.compare else {method: balances[method]}))
    if found:
        console.print(_limit_table(found, classes))
    console.print(
        f"Written to {folder}. Train on these folds with --data.fold_file {folder / 'folds.csv'}", soft_wrap=True
    )


def _document(
    datamodule: SegmentationDataModule, balances: Mapping[str, Balance], found: Sequence[UnbalanceableClass]
) -> dict[str, Any]:
    """What `balance.json` holds."""
    assert datamodule.dataset is not None
    own = balances[datamodule.fold_method]
    by_class = {limit.class_index: limit for limit in found}
    classes = {}
    for index, name in enumerate(datamodule.foreground_names):
        columns = {
            "images": own.images,
            "objects": own.objects,
            "area": own.pixels,
            "object_deviation": own.object_deviation,
            "area_deviation": own.pixel_deviation,
        }
        figures: dict[str, Any] = {key: [or_null(v) for v in values[:, index]] for key, values in columns.items()}
        limit = by_class.get(index)
        figures["limit"] = None
        if limit is not None:
            figures["limit"] = {
                "reason": limit.reason,
                "object_bound": or_null(limit.object_bound),
                "area_bound": or_null(limit.pixel_bound),
            }
        classes[name] = figures
    return {
        "dataset": datamodule.dataset.source,
        "num_images": len(datamodule.dataset),
        "n_folds": datamodule.n_folds,
        "method": datamodule.fold_method,
        "seed": datamodule.split_seed,
        "sizes": own.sizes.tolist(),
        "divergence": [or_null(value) for value in own.divergence],
        "summary": {
            method: {key: or_null(value) for key, value in balance.summary().items()}
            for method, balance in balances.items()
        },
        "classes": classes,
    }


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


def _limit_table(found: Sequence[UnbalanceableClass], classes: Sequence[str]) -> Table:
    title = "Classes that no split can balance: largest deviation reached, and the best possible"
    table = Table(title=title, title_justify="left")
    columns = ("class", "images", "groups", "objects", "objects reached", "possible", "area reached", "possible", "why")
    for column in columns:
        table.add_column(column, justify="left" if column in {"class", "why"} else "right")
    for limit in found:
        figures = (limit.object_deviation, limit.object_bound, limit.pixel_deviation, limit.pixel_bound)
        numbers = (limit.num_images, limit.num_groups, limit.num_objects)
        deviations = ("-" if math.isnan(value) else f"{value:.2f}" for value in figures)
        table.add_row(classes[limit.class_index], *map(str, numbers), *deviations, limit.reason)
    return table
