"""Run `deeplab compare`: compare experiments in quality and cost."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from deeplab_lightning.commands.parsers import compare_parser
from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.experiments.aggregate import Epoch
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.experiments.comparison_table import (
    comparison_csv,
    comparison_json,
    cost_text,
    folds_text,
    interval_text,
    minutes_text,
    p_text,
)
from deeplab_lightning.experiments.entries import Comparison
from deeplab_lightning.experiments.significance import Difference
from deeplab_lightning.experiments.verdict import LEVEL
from deeplab_lightning.files import check_output_file, write_text
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import table_console

_WANDB = "wandb:"
_ANY_WIDTH = 10_000  # characters, more than any table has


def compare(args: list[str]) -> None:
    """Compare experiments, print the tables, and write the files that the options name."""
    given = compare_parser().parse_args(args)
    for option, path in (("--csv", given.csv), ("--json", given.json), ("--html", given.html)):
        check_output_file(option, path)
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        folders, notes = source_folders(given.sources, Path(scratch))
        _refuse_twice(folders)
        compare_folders(
            folders,
            epoch=given.epoch,
            csv_path=given.csv,
            json_path=given.json,
            html_path=given.html,
            notes=notes,
            baseline=given.baseline,
            has_all_pairs=given.all_pairs,
        )


def source_folders(sources: Sequence[str], scratch: Path) -> tuple[list[Path], list[str]]:
    """Find the folder of each experiment; experiments of W&B are first written to `scratch`.

    Args:
        sources: Folders of experiments or runs, folders with offline W&B runs, or `wandb:entity/project/group`.
        scratch: Temporary folder.

    Returns:
        The folders, and notes on what the runs of W&B lack.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        DataError: If the runs of W&B cannot be read, or lack figures.
    """
    folders: list[Path] = []
    notes: list[str] = []
    for source in (part for given in sources for part in _seeds_of(given)):
        folder = Path(source)
        if not source.startswith(_WANDB) and any(run.result.is_file() for run in ExperimentFolder(folder).runs()):
            folders.append(folder)
            continue
        from deeplab_lightning.tracking import runs as wandb_runs  # slow to import, and not needed for folders

        if source.startswith(_WANDB):
            runs = wandb_runs.online_runs(source, scratch)
        elif wandb_runs.has_offline_runs(folder):
            runs, torn = wandb_runs.offline_runs(folder)
            notes += torn
        else:
            raise MissingFileError(
                f"no finished run or fold in {folder.absolute()}: it holds neither a result.json nor a W&B run."
            )
        made, remarks = wandb_runs.write_experiments(runs, scratch, source)
        folders += made
        notes += remarks
    return folders, notes


def _seeds_of(source: str) -> list[str]:
    """Return the experiments of the seeds in a folder of `kfold --seeds`, or the source itself."""
    seeds = [] if source.startswith(_WANDB) else ExperimentFolder(source).seeds()
    return [str(seed.path) for seed in seeds] or [source]


def _refuse_twice(folders: Sequence[Path]) -> None:
    """Raise an error if a folder is given twice, which would be compared with itself.

    Raises:
        UserError: If one is, also as a seed of a folder that is given.
    """
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for n, folder in enumerate(folders) if places[n] in places[:n]), None):
        raise UserError(f"{twice} is given twice, itself or as a part of another folder: give each experiment once.")


def _with_baseline(folders: Sequence[Path], name: str) -> list[Path]:
    """Put the folder of a name, or the seeds in a folder of this name, first.

    Raises:
        DataError: If there is none.
    """
    chosen = []
    for folder in folders:
        own = [folder, folder.parent] if folder.name.startswith("seed_") else [folder]
        if name in {text for path in own for text in (path.name, str(path))}:
            chosen.append(folder)
    if not chosen:
        raise DataError(
            f"--baseline {name} is none of the experiments: {', '.join(folder.name for folder in folders)}."
        )
    return [*chosen, *(folder for folder in folders if folder not in chosen)]


def compare_folders(
    folders: Sequence[Path],
    *,
    epoch: Epoch = "last",
    csv_path: Path | None = None,
    json_path: Path | None = None,
    html_path: Path | None = None,
    notes: Sequence[str] = (),
    baseline: str | None = None,
    has_all_pairs: bool = False,
) -> None:
    """Compare experiments, print the tables, and write the files.

    Args:
        folders: Folders of K-fold experiments or of single runs; the first is the baseline.
        epoch: Epoch of each training to compare, see `compare_experiments`.
        csv_path: CSV file to write the table to; none if None.
        json_path: JSON file to write verdicts, table and notes to; none if None.
        html_path: HTML file to write the page to; none if None.
        notes: Further sentences on the limits of the comparison.
        baseline: Name of the folder that is the baseline; the first if None.
        has_all_pairs: Whether every pair is judged.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        DataError: If the classes differ, or the experiments share no image, or none is called like the baseline.
    """
    folders = folders if baseline is None else _with_baseline(folders, baseline)
    comparison = compare_experiments(folders, epoch=epoch)
    comparison = replace(comparison, notes=[*notes, *comparison.notes])
    if has_all_pairs:
        from deeplab_lightning.experiments.pairs import compare_pairs

        comparison = replace(comparison, pairs=compare_pairs(folders, epoch=epoch))
    console = table_console()
    print_comparison(comparison, console)
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if csv_path is not None:
        write_text(csv_path, comparison_csv(comparison))
        console.print(f"Written to {csv_path}", soft_wrap=True, markup=False)
    if json_path is not None:
        write_text(json_path, comparison_json(comparison))
        console.print(f"Written to {json_path}", soft_wrap=True, markup=False)
    if html_path is not None:
        from deeplab_lightning.experiments.report import write_report

        write_report(comparison, html_path)
        console.print(f"Written to {html_path}", soft_wrap=True, markup=False)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a table each of quality, differences, cost and class IoU; one table would be too wide to read.

    Args:
        comparison: The comparison to print.
        console: Console to print to.
    """
    entries = comparison.entries
    for sentence in comparison.sentences:
        console.print(sentence, style="bold", markup=False, highlight=False)
    names = [escape(entry.label) for entry in entries]
    numbers = [str(place) for place, _ in enumerate(entries, start=1)]
    if not all(_fits(table, console) for table in _tables(comparison, names)):  # a name would be broken
        for number, entry in zip(numbers, entries, strict=True):
            console.print(f"{number} {entry.label}", markup=False, highlight=False, soft_wrap=True)
        names = numbers
    quality, differences, cost = _tables(comparison, names)
    count = "all" if comparison.num_images is None else str(comparison.num_images)
    console.print(f"mIoU over {count} held-out images", style="bold")
    console.print(quality)
    if len(entries) > 1:
        console.print(f"Differences of mIoU from {entries[0].label}", style="bold", markup=False, soft_wrap=True)
        console.print(differences)
    folds = "the compared" if any(entry.compared_folds != entry.cv.folds for entry in entries) else "all"
    console.print(f"Cost: one image of 512x512, the training of {folds} folds", style="bold", highlight=False)
    console.print(cost)
    if len(entries) == 1:
        return
    star = f"*: differs (p < {LEVEL:g} over {comparison.class_basis}, Holm over the classes)"
    console.print(f"IoU of each class; {star}", style="bold")
    for chosen in _class_columns(comparison, names, console):
        console.print(_class_table(comparison, names, chosen))


def _tables(comparison: Comparison, names: Sequence[str]) -> tuple[Table, Table, Table]:
    """Build the tables of quality, differences and cost."""
    return _quality_table(comparison, names), _difference_table(comparison, names), _cost_table(comparison, names)


def _fits(table: Table, console: Console) -> bool:
    """Check whether a table is no wider than the console, so that no text in it is broken."""
    return Measurement.get(console, console.options.update_width(_ANY_WIDTH), table).maximum <= console.width


def _class_columns(comparison: Comparison, names: Sequence[str], console: Console) -> Iterator[range]:
    """Divide the experiments into tables of classes that fit; one at least stands in each."""
    start = 0
    while start < len(names):
        stop = start + 1
        while stop < len(names) and _fits(_class_table(comparison, names, range(start, stop + 1)), console):
            stop += 1
        yield range(start, stop)
        start = stop


def _table(first: str, columns: Sequence[str]) -> Table:
    """Build an empty table, in which only the first column may be folded."""
    table = Table()
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _quality_table(comparison: Comparison, names: Sequence[str]) -> Table:
    """Build the table of mIoU with its interval over images and its spread over folds."""
    has_interval = comparison.num_images is not None
    columns = ["mIoU", *(["95 % images"] if has_interval else []), "mean ± std of folds"]
    table = _table("experiment", columns)
    for name, entry in zip(names, comparison.entries, strict=True):
        interval = [interval_text(*entry.interval)] if has_interval else []
        table.add_row(name, f"{entry.miou:.3f}", *interval, folds_text(entry))
    return table


def _difference_table(comparison: Comparison, names: Sequence[str]) -> Table:
    """Build the table of the differences from the baseline."""
    has_interval = comparison.num_images is not None
    columns = ["mIoU", "95 % folds", *(["95 % images"] if has_interval else []), "p (Holm)"]
    table = _table("experiment", columns)
    for name, entry in list(zip(names, comparison.entries, strict=True))[1:]:
        table.add_row(
            name,
            f"{entry.difference:+.3f}",
            _interval_of(entry.over_folds),
            *([_interval_of(entry.over_images)] if has_interval else []),
            p_text(entry.adjusted_p),
        )
    return table


def _cost_table(comparison: Comparison, names: Sequence[str]) -> Table:
    """Build the table of parameters, multiply-adds and training time."""
    table = _table("experiment", ["M params", "GMACs", "minutes"])
    for name, entry in zip(names, comparison.entries, strict=True):
        sizes = (cost_text(entry.cost[key]) for key in ("mega_parameters", "giga_macs"))
        table.add_row(name, *sizes, minutes_text(entry.cost["seconds"]))
    return table


def _class_table(comparison: Comparison, heads: Sequence[str], chosen: Sequence[int]) -> Table:
    """Build the table of the IoU of each class, for some of the experiments."""
    table = _table("class", [heads[place] for place in chosen])
    for index, name in enumerate(comparison.class_names):
        cells = []
        for entry in (comparison.entries[place] for place in chosen):
            value = entry.iou[index]
            text = "absent" if math.isnan(value) else f"{value:.3f}"
            if entry.is_starred(index):
                text += "*"
            cells.append(text)
        table.add_row(escape(name), *cells)
    return table


def _interval_of(difference: Difference | None) -> str:
    """Format the interval of a difference; empty if there is none."""
    return "" if difference is None else interval_text(difference.low, difference.high, signed=True)
