"""Run `deeplab suspects`: rank the labels that networks contradict which were not trained on them."""

from deeplab_lightning.commands.held_out import with_progress
from deeplab_lightning.commands.parsers import suspects_parser
from deeplab_lightning.errors import UserError
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.runs import ExperimentFolder, SuspectsFolder
from deeplab_lightning.suspects.files import write_coco, write_tables
from deeplab_lightning.suspects.page import write_page
from deeplab_lightning.suspects.ranking import rank
from deeplab_lightning.tables import table_console


def suspects(args: list[str]) -> None:
    """Rank the regions of the held-out images whose labels are contradicted, and write page, tables and proposals.

    Raises:
        FileNotFoundError: If the folder holds no finished run with a checkpoint.
        ValueError: If the limit or the area cannot be used.
        DataError: If the data cannot be used, or have no validation part.
    """
    given = suspects_parser().parse_args(args)
    for name in ("limit", "min_area"):
        if (value := getattr(given, name)) < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
    found = OutOfFold(given.folder, trust=given.trust)
    dataset = found.dataset
    ranking = rank(with_progress(found), limit=given.limit, min_area=given.min_area)
    files = SuspectsFolder(given.output or ExperimentFolder(given.folder).suspects.path)
    write_tables(ranking, dataset.classes, files)
    write_coco(ranking, dataset.classes, files)
    write_page(ranking, dataset, files, title=f"Suspected labels of {found.folder.absolute().name}")
    console = table_console()
    console.print(ranking.describe(), soft_wrap=True)
    console.print(
        f"Written to {files.path}: {', '.join(path.name for path in (files.page, files.table, files.images_table))}, "
        f"{files.coco.name}",
        soft_wrap=True,
        markup=False,
    )
