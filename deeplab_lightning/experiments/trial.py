"""Train one trial of a search in a process of its own, and hand out its epochs one by one."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.attempts import Attempt, Attempts, Outcome
from deeplab_lightning.experiments.jobs import Process
from deeplab_lightning.experiments.launchers.ray import TrainingKilled, is_killed, start_on_node
from deeplab_lightning.runs import SEARCH_VARIABLE, RunFolder

_POLL_SECONDS = 0.2
MAX_END = 600.0
"""Seconds for a training that the search stops to write its result."""


class Trial:
    """Train one trial, and wait with the training after each epoch until the search asks for the next one.

    The epochs that it has trained before are handed out again, without training them.

    Args:
        folder: Folder of its run.
        search: Name of the search.
        epochs: Number of epochs of a training that is not stopped.
        environment: Variables of the machine that searches.
        place: What `describe_place` returned there.
    """

    def __init__(
        self, folder: Path, search: str, epochs: int, environment: Mapping[str, str], place: Mapping[str, str]
    ) -> None:
        self._run, self._epochs, self._seen, self._is_closed = RunFolder(folder), epochs, 0, False
        self._process: Process | None = None
        self._blocked: TrainingKilled | None = None
        self._attempts = Attempts(self._run)
        if self._run.read_result() is not None:
            return
        self._run.write_search_answer(None)
        self._attempts.begin(Attempt(search, "", platform.node(), time.time()))
        os.environ[SEARCH_VARIABLE] = search
        try:
            self._process = start_on_node(["fit", "-c", str(self._run.job)], folder, environment, place)
        except TrainingKilled as error:  # Tune gives a trial up that cannot be built; `next_epoch` can be tried again
            self._blocked = error
            self._attempts.end("lost", str(error))
        except (UserError, OSError) as error:
            self._attempts.end("failed", str(error))

    def next_epoch(self) -> dict[str, Any]:
        """Return `epoch` (from 1), `miou` and `done` of the next epoch, once the training has validated it.

        The search has decided by then that the training goes on after the epoch before. A training that fails has an
        mIoU of 0, since its settings are of no use.

        Raises:
            TrainingKilled: If a signal from elsewhere ended the training, or an earlier start of it, on a node that was
                lost, still writes: it may be started again.
        """
        if self._blocked is not None:
            raise self._blocked
        while True:
            if self._process is not None:
                self._run.write_search_answer(self._seen)
            is_over = self._process is None or self._process.poll() is not None
            rows = self._run.read_metrics()
            last = len(rows) if is_over else self._epochs  # is handed out together with the result
            if self._seen + 1 < last and self._seen < len(rows):
                self._seen += 1
                if (miou := rows[self._seen - 1].get("val/miou")) is not None:
                    return {"epoch": self._seen, "miou": miou, "done": False}
            elif is_over:
                return self._end(rows)
            else:
                time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End a training that still runs after the epoch that was handed out last, with its result."""
        if self._process is None or self._is_closed:
            return
        self._run.write_search_answer(RunFolder.SEARCH_STOPS)
        end = time.monotonic() + MAX_END
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        self._close("stopped")

    def _end(self, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Return the last epoch of a training that has ended.

        Raises:
            TrainingKilled: If a signal ended it.
        """
        scores = [row["val/miou"] for row in rows if "val/miou" in row]
        if self._run.read_result() is not None and scores:
            self._close("finished")
            return {"epoch": len(rows), "miou": scores[-1], "done": True}
        status = None if self._process is None else self._process.poll()
        if status is not None and is_killed(status):
            self._close("killed", f"status {status}")
            raise TrainingKilled(f"{self._run.name} was ended by a signal on {platform.node()} (status {status})")
        if status is not None:
            lines = self._run.log.read_text(errors="replace").split("\n") if self._run.log.is_file() else []
            self._close("failed", next((line for line in reversed(lines) if line.strip()), "it printed nothing"))
        return {"epoch": self._epochs, "miou": 0.0, "done": True}

    def _close(self, outcome: Outcome, reason: str = "") -> None:
        """Record how the training ended, and end what it may have left in its process group."""
        if self._process is not None and not self._is_closed:
            self._is_closed = True
            self._process.kill()
            self._attempts.end(outcome, reason)
