"""Record each job of a queue that trained a fold, and how it ended."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from deeplab_lightning.errors import DataError
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import RunFolder

Outcome = Literal["running", "finished", "failed", "killed", "lost", "continued", "stopped"]


@dataclass(frozen=True)
class Attempt:
    """Hold one start of a fold's training on a node.

    Attributes:
        token: Token of the submission, see `Queue`.
        job: Id of the job.
        node: Name of the node.
        started: Start in seconds since 1970.
        outcome: `running`, also after the node was lost; `finished`; `failed`, by an error that would come again;
            `killed`, by a signal from elsewhere; `lost` with its node; `continued` by a further attempt, after the
            time limit; `stopped`, with its job.
        reason: Why it did not finish.
        ended: End in seconds since 1970.
    """

    token: str
    job: str
    node: str
    started: float
    outcome: Outcome = "running"
    reason: str = ""
    ended: float | None = None


class Attempts:
    """Read and write the attempts of a fold.

    Args:
        run: The fold's folder.

    Raises:
        DataError: If the record is damaged.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.all = _read(run)

    def begin(self, attempt: Attempt) -> None:
        """Add an attempt; one before it whose end nobody recorded was lost."""
        self.all = [replace(a, outcome="lost") if a.outcome == "running" else a for a in self.all]
        self.all.append(attempt)
        self._write()

    def end(self, outcome: Outcome, reason: str = "") -> None:
        """Record how the last attempt ended."""
        self.all[-1] = replace(self.all[-1], outcome=outcome, reason=reason, ended=time.time())
        self._write()

    def of(self, token: str) -> list[Attempt]:
        """Return the attempts of one submission."""
        return [attempt for attempt in self.all if attempt.token == token]

    def losses(self) -> int:
        """Return the number of attempts that were killed or lost, once the last one has ended."""
        return sum(attempt.outcome in {"killed", "lost", "running"} for attempt in self.all)

    def clear(self) -> None:
        """Forget all attempts."""
        self._run.attempts.unlink(missing_ok=True)
        self.all = []

    def _write(self) -> None:
        write_text(self._run.attempts, json.dumps([asdict(attempt) for attempt in self.all], indent=1) + "\n")


def _read(run: RunFolder) -> list[Attempt]:
    if not run.attempts.is_file():
        return []
    try:
        content: Sequence[dict[str, object]] = json.loads(run.attempts.read_text(encoding="utf-8"))
        return [Attempt(**entry) for entry in content]  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise DataError(f"{run.attempts}: is damaged ({error}). Delete it.") from error
