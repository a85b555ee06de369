"""`deeplab wandb-report`: experiments that W&B holds side by side, as a W&B Report."""

import argparse
from urllib.parse import urlsplit

from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.tracking.mode import api_key, can_answer
from deeplab_lightning.tracking.report import build_report, classes_of, describe

_PROJECT = "deeplab_lightning"


def wandb_report(args: list[str]) -> None:
    """Run the command.

    Raises:
        RuntimeError: Without the package `wandb-workspaces`, an account or a connection.
    """
    given = _parser().parse_args(args)
    report = build_report(
        given.groups, project=given.project, entity=given.entity, title=given.title, classes=given.classes
    )
    if given.dry_run:
        for line in describe(report):
            print(line)
        if not given.classes:
            print("panel: IoU of each class, as the runs on the server name them; --classes names them here")
        return
    import wandb

    base_url = str(wandb.setup().settings.base_url)
    if not api_key(urlsplit(base_url).hostname or ""):
        raise UnavailableError(f"a report needs an account of {base_url}: run `wandb login`, or look with --dry_run.")
    if not can_answer(base_url):
        raise UnavailableError(f"{base_url} does not answer. Check the network, or look with --dry_run.")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deeplab wandb-report",
        description="Write a W&B Report that compares experiments: curves, classes, quality against cost, settings.",
    )
    parser.add_argument("--groups", nargs="+", required=True, help="names of the experiments, which are W&B's groups")
    parser.add_argument("--project", default=_PROJECT, help=f"W&B project of the runs ({_PROJECT})")
    parser.add_argument("--entity", default="", help="user or team that owns it; that of your account if not given")
    parser.add_argument("--title", help="title of the report; made from the groups if not given")
    parser.add_argument(
        "--classes", nargs="+", default=[], help="classes whose IoU is drawn; all that the runs know if not given"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the report's blocks; needs no account")
    return parser
