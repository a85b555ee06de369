"""Read and write `folds.csv`, the folds of a data set that later runs take over."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.tables import csv_text, read_csv

_MAX_NAMES = 5  # images or groups that an error message lists


@dataclass(frozen=True)
class FoldTable:
    """Hold the fold and the group of every image.

    Attributes:
        folds: Validation fold, 0-based, by image key.
        groups: Label of the group by image key; images with the same label stay in one fold. Labels are
            empty without groups.
    """

    folds: dict[str, int]
    groups: dict[str, str]

    def with_groups(self, groups: dict[str, str]) -> "FoldTable":
        """Return the same folds with other groups.

        Args:
            groups: Label of the group by image key.

        Raises:
            DataError: If the images of a group are in more than one fold.
        """
        if divided := self._divided(groups):
            raise DataError(
                f"data.fold_file separates {len(divided)} groups of data.groups ({_shortened(divided)}). "
                "Split again with these groups, or set data.groups to null."
            )
        return FoldTable(self.folds, groups)

    def require_whole_groups(self, source: str) -> None:
        """Check that the images of each group of the table itself are in one fold.

        Args:
            source: Where the table comes from, for the error message.

        Raises:
            DataError: If they are not.
        """
        if divided := self._divided({name: label for name, label in self.groups.items() if label}):
            raise DataError(
                f"{source}: separates {len(divided)} groups of its column group ({_shortened(divided)}), so images of "
                "one group train and validate. Split again with data.groups, or leave the column empty."
            )

    def _divided(self, groups: Mapping[str, str]) -> list[str]:
        """Return the groups whose images are in more than one fold."""
        folds_of: dict[str, set[int]] = {}
        for name, label in groups.items():
            folds_of.setdefault(label, set()).add(self.folds[name])
        return sorted(label for label, folds in folds_of.items() if len(folds) > 1)

    def to_csv(self) -> str:
        """Format the table as CSV with the columns image, group, fold."""
        rows = ([image, self.groups.get(image, ""), fold] for image, fold in self.folds.items())
        return csv_text([["image", "group", "fold"], *rows])

    @classmethod
    def read(cls, path: Path, names: Sequence[str], n_folds: int, *, dropped: Sequence[str] = ()) -> "FoldTable":
        """Read the table of exactly the given images.

        Args:
            path: The CSV file.
            names: Keys of the images of the data set.
            n_folds: Expected number of folds.
            dropped: Keys of images that the data set left out as faulty; the file may hold them.

        Raises:
            FileNotFoundError: If the file does not exist.
            DataError: If the file is not a fold table, or has other images or another number of folds.
        """
        if not path.is_file():
            raise MissingFileError(f"no such fold file: {path.absolute()}")
        return cls.of_rows(read_csv(path), str(path), names, n_folds, dropped=dropped)

    @classmethod
    def of_rows(
        cls,
        lines: Sequence[Mapping[str, str]],
        source: str,
        names: Sequence[str],
        n_folds: int,
        *,
        dropped: Sequence[str] = (),
    ) -> "FoldTable":
        """Build the table of exactly the given images from the rows of `to_csv`.

        Args:
            lines: Rows with the columns image, group and fold.
            source: Where the rows come from, for error messages.
            names: Keys of the images of the data set.
            n_folds: Expected number of folds.
            dropped: Keys of images that the data set left out as faulty; the rows may hold them.

        Raises:
            DataError: If the rows are no fold table, or of other images or another number of folds.
        """
        columns = list(lines[0]) if lines else []
        if not {"image", "fold"} <= set(columns):
            raise DataError(f"{source}: must have rows with the columns image, group and fold, got {columns}.")
        left_out = set(dropped)
        rows = {line["image"]: line for line in lines if line["image"] not in left_out}
        _require_same_images(source, [line["image"] for line in lines], set(rows), set(names))
        try:
            folds = {name: int(rows[name]["fold"]) for name in names}
        except (TypeError, ValueError) as error:
            found = sorted({str(line["fold"]) for line in lines if not str(line["fold"]).isdecimal()})
            if set(found) <= {"train", "val"}:
                message = f"{source}: holds the parts of an official split, not folds. Set split: official."
            else:
                message = f"{source}: a fold must be a number from 0 to {n_folds - 1}, got {_shortened(found)}."
            raise DataError(message) from error
        if set(folds.values()) != set(range(n_folds)):
            raise DataError(
                f"{source}: holds the folds {sorted(set(folds.values()))}, but data.n_folds is {n_folds}. "
                "Set data.n_folds to the number of folds in the file, or split again."
            )
        return cls(folds, {name: rows[name].get("group") or "" for name in names})


def _require_same_images(source: str, listed: Sequence[str], found: set[str], expected: set[str]) -> None:
    """Check that a fold file lists each image of the data set once, and no other image.

    Raises:
        DataError: If it does not.
    """
    if repeated := sorted(name for name, times in Counter(listed).items() if times > 1):
        rows = [str(row) for row, name in enumerate(listed, start=2) if name == repeated[0]]
        raise DataError(
            f"{source}: lists {len(repeated)} images more than once ({_shortened(repeated)}; "
            f"{repeated[0]} in the lines {', '.join(rows)}). Keep one row per image."
        )
    missing, unknown = sorted(expected - found), sorted(found - expected)
    differences = [f"{len(missing)} images of the data set are missing ({_shortened(missing)})"] if missing else []
    differences += [f"{len(unknown)} images are not in the data set ({_shortened(unknown)})"] if unknown else []
    if differences:
        raise DataError(
            f"{source}: does not match the data set: {'; '.join(differences)}. "
            "Mend the rows, restore the images, or split again and train from the start."
        )


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
