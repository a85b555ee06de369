"""`deeplab grid`: the product of overlays as K-fold experiments on the same folds."""

import argparse
import itertools
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deeplab_lightning.commands.compare import compare_folders
from deeplab_lightning.commands.kfold import add_launcher_options, refuse_under_a_launcher, run_experiments
from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.experiments.experiment import Experiment, fold_list

_KEYS = {"name", "output_dir", "options", "n_folds", "folds", "predictions", "axes"}


@dataclass(frozen=True)
class Grid:
    """A grid file.

    Attributes:
        name: Folder of the experiments, in `output_dir`.
        output_dir: Folder of that.
        options: Options of `deeplab fit` that all experiments share.
        n_folds: Number of folds; the configuration's own if None.
        folds: Only these; all if None.
        predictions: Whether out-of-fold predictions are written.
        axes: Axis -> label -> the options that this choice adds. Labels name the folders.
    """

    name: str
    output_dir: str
    options: str
    n_folds: int | None
    folds: list[int] | None
    predictions: bool
    axes: dict[str, dict[str, str]]

    @classmethod
    def read(cls, path: Path) -> "Grid":
        """Read and check a grid file.

        Raises:
            FileNotFoundError: If there is none.
            UserError: For unknown keys, or axes that are not label -> options.
        """
        if not path.is_file():
            raise MissingFileError(f"no such grid: {path.absolute()}")
        content: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
        if unknown := sorted(set(content) - _KEYS):
            raise UserError(f"{path}: unknown keys {unknown}; a grid has {sorted(_KEYS)}.")
        axes = content.get("axes")
        if not isinstance(axes, dict) or not axes or not all(map(_is_axis, axes.values())):
            raise UserError(
                f"{path}: axes must map each axis to its labels, and each label to options of `deeplab fit`, a text."
            )
        if not isinstance(content.get("options"), str | None):
            raise UserError(f"{path}: options must be one text, such as '-c configs/base.yaml --seed_everything 1'.")
        folds = content.get("folds")
        if folds is not None and not (isinstance(folds, list) and folds and all(isinstance(f, int) for f in folds)):
            raise UserError(f"{path}: folds must be null for all, or a list such as [0, 2], got {folds!r}.")
        return cls(
            name=str(content.get("name") or path.stem),
            output_dir=str(content.get("output_dir", "runs")),
            options=str(content.get("options") or ""),
            n_folds=content.get("n_folds"),
            folds=folds,
            predictions=bool(content.get("predictions", False)),
            axes={str(a): {str(k): str(v or "") for k, v in axis.items()} for a, axis in axes.items()},
        )

    def experiments(self) -> dict[str, list[str]]:
        """Folder name of each combination -> its options of `deeplab fit`."""
        combined = {}
        for choice in itertools.product(*(axis.items() for axis in self.axes.values())):
            options = [word for text in (self.options, *(text for _, text in choice)) for word in shlex.split(text)]
            name = "-".join(label for label, _ in choice)
            if name in combined:
                raise UserError(f"two combinations of the axes' labels make the folder {name!r}: rename a label.")
            combined[name] = options
        return combined


def _is_axis(axis: Any) -> bool:
    """Whether it maps labels to options."""
    return isinstance(axis, dict) and bool(axis) and all(isinstance(text, str | None) for text in axis.values())


def grid(args: list[str]) -> None:
    """Run the command: prepare every experiment, train all their folds, pool and compare.

    What is finished already is not trained again, so the same command goes on after an interruption.

    Raises:
        SystemExit: 1 if a fold failed, 130 or 143 after a signal, 2 for a wrong command line.
    """
    parser = argparse.ArgumentParser(
        prog="deeplab grid",
        description="K-fold experiments for every combination of a grid file's axes. Run it again to go on.",
    )
    parser.add_argument("-c", "--config", required=True, help="the grid file, such as configs/grids/backbones.yaml")
    parser.add_argument("--name", help="name of the grid's folder, instead of the file's")
    parser.add_argument("--output_dir", help="folder of that, instead of the file's")
    parser.add_argument("--list", action="store_true", help="only list the experiments and their options")
    add_launcher_options(parser)
    given, more = parser.parse_known_args(args)
    grid_file = Grid.read(Path(given.config))
    chosen = {name: [*options, *more] for name, options in grid_file.experiments().items()}
    if given.list:
        for name, options in chosen.items():
            print(f"{name}: {shlex.join(options)}")
        return
    refuse_under_a_launcher()
    folder = Path(given.output_dir or grid_file.output_dir) / (given.name or grid_file.name)
    experiments = []
    for name, options in chosen.items():  # all are checked before the first is trained
        config = resolve_fit_config(options)
        if grid_file.n_folds is not None:
            config["data"]["n_folds"] = grid_file.n_folds
        folds = fold_list(grid_file.folds, config["data"]["n_folds"])
        # Two grids have the same labels often enough.
        experiments.append(Experiment.prepare(folder / name, config, folds, group=f"{folder.name}/{name}"))
    try:
        run_experiments(
            experiments,
            at_once=given.jobs,
            devices=given.devices.split(",") if given.devices else [],
            has_predictions=grid_file.predictions,
            is_in_process=given.in_process,
        )
    finally:
        finished = [e.folder for e in experiments if any(e.is_finished(fold) for fold in e.folds)]
        if len(finished) > 1 and not isinstance(sys.exception(), KeyboardInterrupt):
            compare_folders(finished, csv_path=folder / "compare.csv", html_path=folder / "report.html")
