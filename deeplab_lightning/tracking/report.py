"""Build a W&B Report that compares experiments."""

from collections.abc import Sequence
from typing import Any

from deeplab_lightning.errors import UnavailableError

_MAX_TITLE = 128  # characters that W&B accepts


def build_report(
    groups: Sequence[str], *, project: str, entity: str = "", title: str | None = None, classes: Sequence[str] = ()
) -> Any:
    """Build the report without saving it, which needs no account.

    Args:
        groups: Names of the experiments.
        project: W&B project of their runs.
        entity: User or team that owns the project; must be set before `save` if empty.
        title: Title of the page, cut after 128 characters; made from the groups if None.
        classes: Names of the classes whose IoU is drawn in addition to the mean.

    Returns:
        A `wandb_workspaces.reports.v2.Report`.

    Raises:
        RuntimeError: If the package `wandb-workspaces` is not installed.
    """
    try:
        from wandb_workspaces.reports import v2
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "a W&B Report needs wandb-workspaces: pip install 'deeplab_lightning[report]'."
        ) from error
    names = list(groups)
    runs = v2.Runset(
        entity=entity,
        project=project,
        name="folds",
        filters=f"Group in {names!r} and JobType == 'fold'",  # parsed as Python, so quotes in names are safe
        groupby=["Group"],
    )
    over_folds = {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    panels = [
        v2.LinePlot(title="Validation mIoU, mean and range of the folds", x="epoch", y=["val/miou"], **over_folds),
        v2.LinePlot(title="Validation loss", x="epoch", y=["val/loss"], **over_folds),
        v2.BarPlot(title="Best mIoU, mean of the folds", metrics=[v2.SummaryMetric("best/miou")], **over_folds),
    ]
    if classes:
        per_class = [v2.SummaryMetric(f"best/iou/{name}") for name in classes]
        panels.append(v2.BarPlot(title="IoU of each class, mean of the folds", metrics=per_class, **over_folds))
    quality, work = v2.SummaryMetric("best/miou"), v2.SummaryMetric("cost/giga_macs")
    panels += [
        v2.ScatterPlot(title="Quality against cost", x=work, y=quality),
        v2.RunComparer(diff_only="split"),
    ]
    return v2.Report(
        project=project,
        entity=entity,
        title=(title or f"Comparison of {', '.join(names)}")[:_MAX_TITLE],
        description="Means over the folds of each experiment; `deeplab compare` computes intervals of differences.",
        blocks=[v2.H2("Experiments"), v2.P(", ".join(names)), v2.PanelGrid(runsets=[runs], panels=panels)],
    )


def describe(report: Any) -> list[str]:
    """Return one line per block and panel of a report."""
    lines = [f"report: {report.title}", f"project: {'/'.join(filter(None, (report.entity, report.project)))}"]
    for block in report.blocks:
        if type(block).__name__ != "PanelGrid":
            lines.append(f"{type(block).__name__}: {block.text}")
            continue
        lines += [f"runs: {runset.filters}, grouped by {', '.join(runset.groupby)}" for runset in block.runsets]
        lines += [f"panel: {panel!r}" for panel in block.panels]
    return lines


def classes_of(groups: Sequence[str], path: str) -> list[str]:
    """Read the class names of a finished fold from the W&B server.

    Args:
        groups: Names of the experiments.
        path: `entity/project` of their runs.

    Raises:
        RuntimeError: If no fold of the experiments is finished.
    """
    import wandb

    prefix = "best/iou/"
    for run in wandb.Api(timeout=30).runs(
        path, filters={"group": {"$in": list(groups)}, "jobType": "fold"}, lazy=False
    ):
        if names := [key.removeprefix(prefix) for key in run.summary.keys() if key.startswith(prefix)]:  # noqa: SIM118
            return names
    raise UnavailableError(
        f"the project {path} has no finished fold of {', '.join(groups)}. `deeplab kfold` trains them."
    )
