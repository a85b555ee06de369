"""A K-fold experiment in W&B: one run beside those of its folds, with what they say together."""

import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from deeplab_lightning.data.cache import content_key
from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tracking.mode import choose_mode, wandb_arguments


def log_cv(result: CrossValidation, folder: Path, config: dict[str, Any], *, group: str) -> None:
    """Log table, confusion matrix, figure and report page in the folds' group, once.

    Nothing where W&B is disabled. What fails here is said and no more: the folder holds everything, and the
    same command tries again.

    Args:
        result: The pooled folds.
        folder: The experiment's folder, which holds `cv.json` and `cv.png`; the run is written there.
        config: The experiment's configuration.
        group: W&B's group of the folds.
    """
    arguments = wandb_arguments(config["trainer"]["logger"])
    mode = choose_mode(config["wandb"]) if arguments else "disabled"
    files = ExperimentFolder(folder)
    content, record = content_key(files.result.read_text()), files.logged
    if mode == "disabled" or (record.is_file() and record.read_text() == content):
        return
    try:
        _log(result, folder, config, arguments[0], group=group, mode=mode)
    except Exception as error:  # whatever W&B's client raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        rank_zero_warn(f"W&B: the run of all folds of {folder} was not logged ({reason}). Its folder holds all.")
    else:
        write_text(record, content)


def _log(
    result: CrossValidation, folder: Path, config: dict[str, Any], arguments: dict[str, Any], *, group: str, mode: Any
) -> None:
    import wandb

    run = wandb.init(
        project=arguments.get("project"),
        entity=arguments.get("entity"),
        name=f"{group}/cv",
        group=group,
        job_type="cv",
        dir=str(folder),
        mode=mode,
        config=config,
        reinit="finish_previous",
    )
    matrix = result.matrix
    table = [[name, float(v)] for name, v in zip(result.classes, result.pooled_iou, strict=True)]
    rows = [[name, *row] for name, row in zip(result.classes, matrix.tolist(), strict=True)]
    folds = [[fold, float(miou)] for fold, miou in zip(result.folds, result.miou, strict=True)]
    run.log(
        {
            "cv/iou": wandb.Table(["class", "iou"], table),
            "cv/folds": wandb.Table(["fold", "miou"], folds),
            "cv/confusion_matrix": wandb.Table(["truth \\ prediction", *result.classes], rows),
            "cv/picture": wandb.Image(str(ExperimentFolder(folder).figure)),
            "cv/report": wandb.Html(_page(folder), inject=False),  # as it is: a style from outside would be added
        }
    )
    run.summary["cv/miou"] = result.pooled_miou
    run.summary["cv/miou_mean"] = float(result.miou.mean())
    if len(result.miou) > 1:
        run.summary["cv/miou_std"] = float(result.miou.std(ddof=1))
    run.finish()


def _page(folder: Path) -> str:
    """The report page of this one experiment."""
    from deeplab_lightning.experiments.comparison import compare_experiments
    from deeplab_lightning.experiments.report import write_report

    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        path = Path(scratch) / "report.html"
        write_report(compare_experiments([folder]), path)
        return path.read_text()
