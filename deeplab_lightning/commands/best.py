"""Run `deeplab best`: find how to predict with the networks of experiments, and what that will bring."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from deeplab_lightning.commands.held_out import tracked
from deeplab_lightning.commands.parsers import best_parser
from deeplab_lightning.crf import DenseCRF
from deeplab_lightning.data.config import read_config
from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.best import Recipe, Search, Step, recipe_settings, taken
from deeplab_lightning.experiments.selection import gain
from deeplab_lightning.experiments.significance import Difference
from deeplab_lightning.files import check_output_file, unused_path, write_text
from deeplab_lightning.inference import Views
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.inference.tiles import Tiles
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import table_console


def best(args: list[str]) -> None:
    """Choose experiments, views, CRF and smallest region on the held-out images, and write the options of `predict`.

    Raises:
        FileNotFoundError: If an experiment has no finished fold, or there is no CRF file.
        ValueError: If an option cannot be used, or the experiments have other folds.
    """
    given = best_parser().parse_args(args)
    check_output_file("--output", given.output)
    views = [Views.parse(text) for text in given.tta]
    areas, tiles = _areas(given.min_areas), Tiles.parse(given.tile, given.overlap)
    crf = None if given.crf is None else _read_crf(given.crf)
    path = given.output or unused_path(ExperimentFolder(given.experiments[0]).best_recipe)
    experiments = [OutOfFold(folder, trust=given.trust) for folder in dict.fromkeys(given.experiments)]
    search = Search(
        experiments,
        views,
        areas,
        tiles,
        None if crf is None else DenseCRF(**crf["init_args"]),
        progress=lambda samples, count: tracked(samples, "Predicting held-out images", count),
    )
    steps = search.run()
    last = taken(steps)
    gains = [None if s.before is None else gain(s.before.choice, s.choice, search.groups) for s in steps]
    names = [experiment.folder.name for experiment in experiments]
    settings: dict[str, Any] = recipe_settings(last.recipe, experiments)
    if last.recipe.has_crf and crf is not None:
        settings["model"] = {"postprocess": crf}
    command = ["deeplab", "predict", "-c", str(path), "--images", "FOLDER"]
    promise = _promise(last, search)
    comments = [f"# {promise}", f"# {shlex.join(command)}", f"# {_described(last.recipe, names)}"]
    write_text(path, "\n".join(comments) + "\n" + yaml.safe_dump(settings, sort_keys=False))
    record = {"experiments": list(map(str, given.experiments)), "steps": _records(steps, gains, names)}
    write_text(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    console = table_console()
    console.print(_table(steps, gains, names, title=f"Steps, each chosen on the other {_units(search)}' images"))
    for line in (promise, f"Written to {path} and {path.with_suffix('.json').name}. To predict:", shlex.join(command)):
        console.print(line, soft_wrap=True, markup=False)


def _areas(text: str) -> list[int]:
    try:
        areas = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        areas = [-1]
    if min(areas, default=0) < 0:
        raise UserError(f"--min_areas must be numbers of pixels, such as 32,128,512, got {text!r}.")
    return areas


def _read_crf(path: Path) -> dict[str, Any]:
    """Read the parameters of the CRF from what `deeplab tune-crf` wrote.

    Raises:
        UserError: If the file sets no `DenseCRF`.
    """
    crf = (read_config(path).get("model") or {}).get("postprocess")
    if not isinstance(crf, dict) or str(crf.get("class_path")).rpartition(".")[2] != "DenseCRF":
        raise UserError(f"{path} sets no DenseCRF as model.postprocess. Give the crf.yaml of `deeplab tune-crf`.")
    return {"class_path": crf["class_path"], "init_args": dict(crf.get("init_args") or {})}


def _described(recipe: Recipe, names: Sequence[str]) -> str:
    """Describe a recipe, such as `a + 2 b; flip; CRF; regions of 32 pixels`."""
    used = [(name, weight) for name, weight in zip(names, recipe.weights, strict=True) if weight]
    parts = [" + ".join(f"{weight} {name}" if weight > 1 else name for name, weight in used)]
    tiles = str(recipe.tiles) if recipe.tiles else None
    parts += [text for text in (recipe.views.option, tiles, "CRF" if recipe.has_crf else None) if text]
    return "; ".join([*parts, *([f"regions of {recipe.min_area} pixels"] if recipe.min_area else [])])


def _units(search: Search) -> str:
    return "parts" if search.is_single else "folds"


def _promise(step: Step, search: Search) -> str:
    limits = (
        "It is that of one training, whose best epoch was chosen on these images; another training would give another."
        if search.is_single
        else "It is that of the networks of one fold; those of all folds predict new images."
    )
    if search.missing_folds:
        untrained = ", ".join(map(str, search.missing_folds))
        limits += f" Fold {untrained} was not trained, so its images took no part."
    return (
        f"mIoU {step.choice.miou:.3f} is to be expected on new images like these, measured on {search.num_images} "
        f"held-out images, each by what the other {_units(search)} chose; {max(step.choice.optimism, 0):.3f} of the "
        f"{step.choice.selected_miou:.3f} on the images of the choice is due to the choice. {limits}"
    )


def _records(steps: Sequence[Step], gains: Sequence[Difference | None], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "step": step.name,
            "is_taken": step.is_taken,
            "choice": _described(step.recipe, names),
            "miou": step.choice.miou,
            "miou_on_images_of_the_choice": step.choice.selected_miou,
            "gain": None
            if found is None
            else {"mean": found.mean, "low": _number(found.low), "high": _number(found.high)},
            "seconds_per_image": step.seconds,
        }
        for step, found in zip(steps, gains, strict=True)
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _table(steps: Sequence[Step], gains: Sequence[Difference | None], names: Sequence[str], *, title: str) -> Table:
    """Build the printed table, with a row per step."""
    table = Table(title=title, title_justify="left")
    table.add_column("step")
    table.add_column("choice", overflow="fold")
    for column in ("mIoU", "gain", "95 % over images", "by choice", "s per image"):
        table.add_column(column, justify="right")
    for step, found in zip(steps, gains, strict=True):
        is_known = found is not None and not np.isnan(found.low)
        table.add_row(
            step.name if step.is_taken else f"{step.name} (not taken)",
            _described(step.recipe, names),
            f"{step.choice.miou:.4f}",
            "" if found is None else f"{found.mean:+.4f}",
            f"{found.low:+.4f} to {found.high:+.4f}" if found is not None and is_known else "",
            f"{step.choice.optimism:+.4f}",
            f"{step.seconds:.2f}",
        )
    return table
