"""Name, write and read the files that the folders of runs, experiments and splits share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deeplab_lightning.data.folds.balance import balance_fault
from deeplab_lightning.errors import DataError, MissingFileError
from deeplab_lightning.files import write_text
from deeplab_lightning.tables import read_csv

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
FOLDS, BALANCE = "folds.csv", "balance.csv"


class Folder:
    """Name the files that runs, experiments and splits share.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        """Resolved configuration; `deeplab fit -c` trains it again."""
        self.folds = self.path / FOLDS
        """Group and validation fold of every image."""
        self.balance = self.path / BALANCE
        """Images, objects and area of each class in each fold."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Return the last part of the folder's path."""
        return self.path.name

    def read_config(self) -> dict[str, Any]:
        """Read the resolved configuration; an empty file gives an empty mapping.

        Raises:
            FileNotFoundError: If there is no `config.yaml`.
            DataError: If it is damaged.
        """
        if not self.config.is_file():
            raise MissingFileError(f"no such file: {self.config.absolute()}. {self.path} is not the folder of a run.")
        return read_yaml(self.config)

    def write_splits(self, folds: str, balance: str | None) -> None:
        """Write `balance.csv` and `folds.csv`; the folds come last, so that they exist only with their balance.

        Args:
            folds: Text of `folds.csv`.
            balance: Text of `balance.csv`; not written if None, as for an official split.
        """
        if balance is not None:
            write_text(self.balance, balance)
        write_text(self.folds, folds)

    def read_groups(self) -> dict[str, str]:
        """Read the group label of each image key; empty without `folds.csv`."""
        rows = read_csv(self.folds, ("image", "group")) if self.folds.is_file() else []
        return {row["image"]: row["group"] for row in rows}

    def read_folds(self) -> dict[str, str]:
        """Read the fold of each image key; empty without `folds.csv`."""
        rows = read_csv(self.folds, ("image", "fold")) if self.folds.is_file() else []
        return {row["image"]: row["fold"] for row in rows}

    def read_balance(self) -> list[dict[str, str]]:
        """Read the rows of `balance.csv`; empty without the file.

        Raises:
            DataError: If it is damaged.
        """
        rows = read_csv(self.balance, ("fold", "class")) if self.balance.is_file() else []
        if rows and (fault := balance_fault(rows)):
            raise DataError(f"{self.balance}: is damaged: {fault}.")
        return rows


class SplitFolder(Folder):
    """Name and write the files of `deeplab split`.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.balance_document, self.balance_figure = self.path / "balance.json", self.path / "balance.png"
        """Balance of this split and of other methods, in full and as a figure."""

    def write_balance_document(self, document: Mapping[str, Any]) -> None:
        """Write `balance.json`."""
        write_text(self.balance_document, json.dumps(document, indent=1) + "\n")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping; an empty file gives an empty one.

    Raises:
        DataError: If the file is damaged.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML_LOADER)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # YAML's own, text, and dates and numbers
        raise DataError(f"{path}: is damaged, or not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict | None):
        raise DataError(f"{path}: is damaged: it holds a {type(content).__name__} instead of settings.")
    return content or {}


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, in its order."""
    write_text(path, yaml.safe_dump(content, sort_keys=False))
