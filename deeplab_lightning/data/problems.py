"""Describe problems of a data set, each with the file and a remedy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deeplab_lightning.errors import DataError

OnError = Literal["raise", "skip"]
_MAX_PROBLEMS = 10  # in one error message


@dataclass(frozen=True)
class Problem:
    """Hold one problem.

    Args:
        where: The file, or the part of it.
        found: Description of the fault.
        todo: Instruction how to correct it, a sentence.
        images: Keys of the images that cannot be used because of it.
    """

    where: str
    found: str
    todo: str
    images: tuple[str, ...] = ()

    @classmethod
    def from_error(cls, error: Exception, todo: str, *images: str) -> "Problem":
        """Build a problem from an error whose message has the form `FILE: fault`.

        Args:
            error: Error of reading a file.
            todo: Instruction how to correct it, a sentence.
            *images: Keys of the images that cannot be used because of it.
        """
        where, _, found = str(error).partition(": ")
        return cls(where, found, todo, images)

    def __str__(self) -> str:
        return f"{self.where}: {self.found}. {self.todo}"


def data_error(problems: Sequence[Problem]) -> DataError:
    """Build one error from the first problems and the number of the others."""
    lines = [str(problem) for problem in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"... and {len(problems) - _MAX_PROBLEMS} more; `deeplab data check` lists all of them.")
    if len(problems) > 1:
        lines.insert(0, f"{len(problems)} problems in the data (on_error: skip leaves the faulty entries out):")
    return DataError("\n".join(lines))
