"""Run `deeplab report`: write the page of one experiment or one run."""

from deeplab_lightning.commands.parsers import report_parser
from deeplab_lightning.experiments.page import write_page
from deeplab_lightning.files import check_output_file
from deeplab_lightning.tables import table_console


def report(args: list[str]) -> None:
    """Write the page of one experiment or one run.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
    """
    given = report_parser().parse_args(args)
    check_output_file("--html", given.html)
    path = write_page(given.folder, epoch=given.epoch, path=given.html)
    table_console().print(f"Written to {path}", soft_wrap=True, markup=False)
