"""A K-fold experiment in W&B: one run beside those of its folds, with what they say together."""

import tempfile
from pathlib import Path
from typing import Any

from deeplab_lightning.callbacks.wandb_mode import choose_mode
from deeplab_lightning.experiments.aggregate import CrossValidation


def log_cv(result: CrossValidation, folder: Path, config: dict[str, Any]) -> None:
    """Log table, confusion matrix, figure and report page in the folds' group. Nothing where W&B is disabled.

    Args:
        result: The pooled folds.
        folder: The experiment's folder, which holds `cv.png`; the run is written there.
        config: The experiment's configuration.
    """
    loggers = config["trainer"]["logger"]
    arguments = [
        logger.get("init_args", {})
        for logger in (loggers if isinstance(loggers, list) else [loggers])
        if isinstance(logger, dict) and str(logger.get("class_path", "")).endswith("WandbLogger")
    ]
    mode = choose_mode(config["wandb"]) if arguments else "disabled"
    if mode == "disabled":
        return
    import wandb

    run = wandb.init(
        project=arguments[0].get("project"),
        entity=arguments[0].get("entity"),
        name=f"{folder.name}/cv",
        group=folder.name,
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
            "cv/picture": wandb.Image(str(folder / "cv.png")),
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
    from deeplab_lightning.experiments.compare import compare_experiments
    from deeplab_lightning.experiments.report import write_report

    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        path = Path(scratch) / "report.html"
        write_report(compare_experiments([folder]), path)
        return path.read_text()
