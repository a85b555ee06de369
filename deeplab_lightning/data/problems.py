"""Describe problems of a data set, each with the file and a remedy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deeplab_lightning.errors import DataError

OnError = Literal["raise", "skip"]
_MAX_PROBLEMS = 10  # in one error message
_MAX_OF_KIND = 3  # in one error message


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
    lines = problem_lines(problems, max_of_kind=_MAX_OF_KIND)
    others = len(lines) - _MAX_PROBLEMS
    lines = lines[:_MAX_PROBLEMS]
    if others > 0:
        lines.append(f"... and {others} more kinds; `deeplab data check` lists all of them.")
    if len(problems) > 1:
        lines.insert(0, f"{len(problems)} problems in the data (on_error: skip leaves the faulty entries out):")
    return DataError("\n".join(lines))


def problem_lines(problems: Sequence[Problem], *, max_of_kind: int) -> list[str]:
    """Describe problems in one line each, and only the first ones of a kind.

    Args:
        problems: The problems; those with the same fault or the same remedy are of one kind.
        max_of_kind: Number of lines for each kind; the last of them says how many more there are.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.todo, []).append(problem)
    lines: list[str] = []
    for members in kinds.values():
        lines.extend(str(problem) for problem in members[:max_of_kind])
        if (others := len(members) - max_of_kind) > 0:
            lines[-1] += f" (and {others} more like this)"
    return lines
