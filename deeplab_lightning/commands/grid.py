"""Run `deeplab grid`: K-fold experiments for every combination of overlays, on the same folds."""

import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab_lightning.commands.compare import compare_folders
from deeplab_lightning.commands.folds import run_experiments
from deeplab_lightning.commands.kfold import check_machine, refuse_cheap_queue, refuse_fold
from deeplab_lightning.commands.option_values import check_name
from deeplab_lightning.commands.parsers import grid_parser
from deeplab_lightning.commands.placement import Placement
from deeplab_lightning.commands.queueing import check_cluster, refuse_queued
from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.data.config import read_config
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.experiments.early_stop import check_number_of_folds
from deeplab_lightning.experiments.experiment import Experiment, fold_list
from deeplab_lightning.runs import ExperimentFolder

_KEYS = {"name", "output_dir", "options", "n_folds", "folds", "predictions", "axes"}


@dataclass(frozen=True)
class Grid:
    """Hold the content of a grid file.

    Attributes:
        name: Name of the grid's folder, which holds a folder per experiment.
        output_dir: Folder that holds the grid's folder.
        options: Options of `deeplab fit` that all experiments share.
        n_folds: Number of folds; that of the configuration if None.
        folds: Folds to train, 0-based; all if None.
        predictions: Whether the out-of-fold predictions are written.
        axes: Axis -> label -> options of `deeplab fit` that this choice adds. The labels name the folders.
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
            FileNotFoundError: If the file does not exist.
            ValueError: If it is not YAML, has unknown keys, or an axis does not map labels to options.
        """
        if not path.is_file():
            raise MissingFileError(f"no such grid: {path.absolute()}")
        content = read_config(path)
        if unknown := sorted(map(str, content.keys() - _KEYS)):
            raise UserError(f"{path}: unknown keys {unknown}; a grid has {sorted(_KEYS)}.")
        axes = content.get("axes")
        if not isinstance(axes, dict) or not axes or not all(map(_is_axis, axes.values())):
            raise UserError(
                f"{path}: axes must map each axis to its labels, and each label to a text of options of `deeplab fit`."
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
        """Combine the axes: folder name of each experiment -> its options of `deeplab fit`.

        Raises:
            ValueError: If two combinations have the same name.
        """
        combined = {}
        for choice in itertools.product(*(axis.items() for axis in self.axes.values())):
            options = [word for text in (self.options, *(text for _, text in choice)) for word in shlex.split(text)]
            name = "-".join(label for label, _ in choice)
            if name in combined:
                raise UserError(f"two combinations of the axes' labels give the folder {name!r}; rename a label.")
            combined[name] = options
        return combined


def _is_axis(axis: Any) -> bool:
    """Check whether an axis maps labels to options."""
    return isinstance(axis, dict) and bool(axis) and all(isinstance(text, str | None) for text in axis.values())


def grid(args: list[str]) -> None:
    """Prepare every experiment, train all their folds, pool and compare them.

    Finished folds are not trained again, so the same command continues an interrupted grid.

    Raises:
        SystemExit: With status 1, if a fold failed; 130 or 143 after a signal; 2, if the command line is wrong.
    """
    given, more = grid_parser().parse_known_args(args)
    placement, more = Placement.parse(given, more)
    grid_file = Grid.read(Path(given.config))
    chosen = {name: [*options, *more] for name, options in grid_file.experiments().items()}
    if given.list:
        for name, options in chosen.items():
            print(f"{name}: {shlex.join(options)}")
        return
    check_machine()
    for name in (given.name or grid_file.name, *chosen):
        check_name(name)
    folder = Path(given.output_dir or grid_file.output_dir) / (given.name or grid_file.name)
    refuse_cheap_queue(given.cheap, placement)
    check_cluster(placement)
    refuse_queued(folder, placement)
    experiments = []
    for name, options in chosen.items():  # all are checked before the first one is trained
        refuse_fold(options, f"`folds: [0, 2]` in {given.config} trains only some")
        config = resolve_fit_config(options)
        if grid_file.n_folds is not None:
            config["data"]["n_folds"] = grid_file.n_folds
        placement.refuse_several_nodes(config)
        folds = fold_list(grid_file.folds, config["data"]["n_folds"])
        if given.cheap:
            check_number_of_folds(folds)
        # With the grid's name, since different grids often use the same labels.
        experiments.append(Experiment.prepare(folder / name, config, folds, name=f"{folder.name}/{name}"))
    has_ended = True
    try:
        has_ended = run_experiments(
            experiments,
            placement,
            folder=folder,
            command="grid",
            has_predictions=grid_file.predictions,
            is_cheap=given.cheap,
        )
    finally:
        if has_ended and not isinstance(sys.exception(), KeyboardInterrupt):
            compare_grid(folder, experiments)


def compare_grid(folder: Path, experiments: Sequence[Experiment]) -> None:
    """Compare the experiments of a grid that have a finished fold, if there are several.

    Args:
        folder: Folder of the grid.
        experiments: Its experiments.
    """
    finished = [e.folder for e in experiments if any(e.is_finished(fold) for fold in e.folds)]
    if len(finished) > 1:
        compare_folders(finished, csv_path=folder / "compare.csv", html_path=ExperimentFolder(folder).report)
