"""Run `deeplab wandb-report`: write a W&B Report that compares experiments."""

from deeplab_lightning.commands.parsers import wandb_report_parser
from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.tracking.mode import require_server
from deeplab_lightning.tracking.report import build_report, classes_of, describe


def wandb_report(args: list[str]) -> None:
    """Write a report to W&B, or print its blocks.

    Raises:
        RuntimeError: If the package `wandb-workspaces`, an account or a connection is missing.
    """
    given = wandb_report_parser().parse_args(args)
    report = build_report(
        given.groups, project=given.project, entity=given.entity, title=given.title, classes=given.classes
    )
    if given.dry_run:
        for line in describe(report):
            print(line)
        if not given.classes:
            print("panel: IoU of each class, with the class names of the runs on the server; set them by --classes")
        return
    import wandb

    base_url = require_server("a report", otherwise=", or print the blocks with --dry_run")
    try:
        entity = given.entity or wandb.Api(timeout=30).default_entity or ""
        report = build_report(
            given.groups,
            project=given.project,
            entity=entity,
            title=given.title,
            classes=given.classes or classes_of(given.groups, f"{entity}/{given.project}"),
        )
        report.save()
    except (ValueError, wandb.errors.Error) as error:
        raise UnavailableError(f"{base_url} did not take the report: {str(error).splitlines()[0]}") from error
    print(report.url)
