"""Write the page of one experiment or one run into its folder."""

from pathlib import Path

from deeplab_lightning.errors import MissingFileError
from deeplab_lightning.experiments.aggregate import Epoch
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.experiments.report import write_report
from deeplab_lightning.runs import ExperimentFolder


def write_page(folder: Path, *, epoch: Epoch = "last", path: Path | None = None) -> Path:
    """Write the page of one experiment or one run, and return its path.

    Args:
        folder: Folder of a run, an experiment, or the experiments of several seeds, which are pooled.
        epoch: See `compare_experiments`.
        path: The HTML file; `report.html` in the folder if None.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
    """
    files = ExperimentFolder(folder)
    if not files.path.is_dir():
        raise MissingFileError(f"no such folder of a run or an experiment: {files.path.absolute()}")
    seeds = [seed.path for seed in files.seeds() if any(run.result.is_file() for run in seed.runs())]
    comparison = compare_experiments(seeds or [files.path], epoch=epoch, is_one=True)
    write_report(comparison, path or files.report)
    return path or files.report
