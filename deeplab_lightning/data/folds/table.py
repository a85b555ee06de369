"""`folds.csv`: the folds of a data set, written once and read back by every later run."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.tables import csv_text

_NAMED = 5  # images that a message names


@dataclass(frozen=True)
class FoldTable:
    """Which image is in which fold.

    Attributes:
        folds: Image key -> validation fold.
        groups: Image key -> label of what stays in one fold; empty without groups.
    """

    folds: dict[str, int]
    groups: dict[str, str]

    def with_groups(self, groups: dict[str, str]) -> "FoldTable":
        """The same folds with these groups.

        Raises:
            DataError: If a group lies in more than one fold.
        """
        folds_of: dict[str, set[int]] = {}
        for name, label in groups.items():
            folds_of.setdefault(label, set()).add(self.folds[name])
        if cut := sorted(label for label, folds in folds_of.items() if len(folds) > 1):
            raise DataError(
                f"data.fold_file separates {len(cut)} groups of data.groups ({_some(cut)}). "
                "Split again with these groups, or set data.groups to null."
            )
        return FoldTable(self.folds, groups)

    def to_csv(self) -> str:
        """With the columns image, group, fold."""
        rows = ([image, self.groups.get(image, ""), fold] for image, fold in self.folds.items())
        return csv_text([["image", "group", "fold"], *rows])

    @classmethod
    def read(cls, path: Path, names: Sequence[str], n_folds: int, *, dropped: Sequence[str] = ()) -> "FoldTable":
        """Read the folds of exactly these images.

        Args:
            path: The file.
            names: Keys of the images of the data set.
            n_folds: The number of folds that it should hold.
            dropped: Images that the data set left out as bad; they may stand in the file.

        Raises:
            FileNotFoundError: If there is none.
            DataError: If it is of other images or of another number of folds, or no fold table.
        """
        if not path.is_file():
            raise MissingFileError(f"no such fold file: {path.absolute()}")
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if not {"image", "fold"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: must have the columns image, group and fold, got {reader.fieldnames}.")
            lines = list(reader)
        left_out = set(dropped)
        rows = {row["image"]: row for row in lines if row["image"] not in left_out}
        if twice := sorted(name for name, times in Counter(row["image"] for row in lines).items() if times > 1):
            raise DataError(f"{path}: {len(twice)} images stand twice ({_some(twice)}). Keep one row of each.")
        added, gone = sorted(set(names) - set(rows)), sorted(set(rows) - set(names))
        if added or gone:
            differences = [f"{len(added)} images are not in it ({_some(added)})"] if added else []
            differences += [f"{len(gone)} of its images are gone ({_some(gone)})"] if gone else []
            raise DataError(f"{path}: is of other data: {'; '.join(differences)}. Split again, or restore the images.")
        try:
            folds = {name: int(rows[name]["fold"]) for name in names}
        except ValueError as error:
            raise DataError(f"{path}: holds the parts of an official split, not folds. Set split: official.") from error
        if set(folds.values()) != set(range(n_folds)):
            raise DataError(
                f"{path}: holds the folds {sorted(set(folds.values()))}, but data.n_folds is {n_folds}. "
                "Set data.n_folds to its number, or split again."
            )
        return cls(folds, {name: rows[name].get("group") or "" for name in names})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
