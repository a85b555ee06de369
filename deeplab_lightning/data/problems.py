"""What is wrong with a data set, in words that say what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deeplab_lightning.errors import DataError

OnError = Literal["raise", "skip"]
_SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        where: The file, or the part of it.
        found: What was found there.
        todo: What to do about it.
        images: Keys of the images that cannot be used because of it.
    """

    where: str
    found: str
    todo: str
    images: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.found}. {self.todo}"


def data_error(problems: Sequence[Problem]) -> DataError:
    """The first problems in one message, with the number of the others."""
    lines = [str(problem) for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"... and {len(problems) - _SHOWN} more; `deeplab data check` lists all.")
    if len(problems) > 1:
        lines.insert(0, f"{len(problems)} problems in the data (on_error: skip leaves them out):")
    return DataError("\n".join(lines))
