"""Log the pooled result of a K-fold experiment as an extra W&B run."""

import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from deeplab_lightning.class_paths import init_args_of
from deeplab_lightning.data.cache import content_key
from deeplab_lightning.experiments.aggregate import CrossValidation
from deeplab_lightning.runs import ExperimentFolder, RunFolder, confusion_rows
from deeplab_lightning.tracking.mode import choose_mode


def log_cv(result: CrossValidation, folder: Path, config: dict[str, Any], *, group: str) -> None:
    """Log figures, table, confusion matrix, figure and report page once, in the W&B group of the folds.

    If folds are trained further, the same run gets the new result. In a trial of a W&B sweep, it is the trial's run.
    Nothing is logged if W&B is disabled. A failure only causes a warning: the folder holds everything, and the same
    command tries again.

    Args:
        result: The pooled folds.
        folder: The experiment's folder, which holds `cv.json` and `cv.png`; W&B writes its run there.
        config: The experiment's configuration.
        group: W&B group of the folds.
    """
    arguments = init_args_of("WandbLogger", config["trainer"]["logger"])
    mode = choose_mode(config["wandb"]) if arguments else "disabled"
    files = ExperimentFolder(folder)
    key = content_key(files.result.read_text())
    if mode == "disabled" or files.is_logged(key):
        return
    try:
        _log(result, folder, config, arguments[0], group=group, mode=mode)
    except Exception as error:  # of any kind: the experiment does not depend on W&B
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        rank_zero_warn(
            f"W&B: the pooled result of {folder} was not logged ({reason}). The folder holds it; the same command "
            "tries again."
        )
    else:
        files.mark_logged(key)
        rank_zero_info(f"W&B: {folder} is logged as the group {group}.")


def _log(
    result: CrossValidation, folder: Path, config: dict[str, Any], arguments: dict[str, Any], *, group: str, mode: Any
) -> None:
    import wandb

    own = RunFolder(folder).read_wandb_run() or {}
    run = wandb.init(
        project=arguments.get("project"),
        entity=arguments.get("entity"),
        id=own.get("id"),  # of the earlier result, if folds were trained further
        resume="allow",
        name=f"{group}/cv",
        group=group,
        job_type="cv",
        dir=str(folder),
        mode=mode,
        config=config,
        reinit="finish_previous",
    )
    if run.id and "WANDB_SWEEP_ID" not in os.environ:  # the run of a trial is not ours to continue
        RunFolder(folder).write_wandb_run({"project": run.project, "entity": run.entity or None, "id": run.id})
    iou = dict(zip(result.class_names, result.pooled_iou.tolist(), strict=True))
    header, *rows = confusion_rows(result.matrix, result.class_names)
    folds = [[fold, float(miou)] for fold, miou in zip(result.folds, result.miou, strict=True)]
    run.log(
        {
            "cv/miou": result.pooled_miou,
            **{f"cv/iou/{name}": value for name, value in iou.items() if not math.isnan(value)},
            "cv/iou": wandb.Table(["class", "iou"], [list(pair) for pair in iou.items()]),
            "cv/folds": wandb.Table(["fold", "miou"], folds),
            "cv/confusion_matrix": wandb.Table(header, rows),
            "cv/figure": wandb.Image(str(ExperimentFolder(folder).figure)),
            "cv/report": wandb.Html(_page(folder), inject=False),  # W&B would add its own style
        }
    )
    run.summary["cv/miou_mean"] = float(result.miou.mean())
    if len(result.miou) > 1:
        run.summary["cv/miou_std"] = result.miou_std
    run.finish()


def _page(folder: Path) -> str:
    """Return the HTML of the page of one experiment, which is written unless it is there."""
    from deeplab_lightning.experiments.page import write_page

    path = ExperimentFolder(folder).report
    return (path if path.is_file() else write_page(folder)).read_text(encoding="utf-8")
