"""Show jobs in a live table in a terminal, and as lines of text elsewhere."""

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.jobs import Job, JobState
from deeplab_lightning.runs import RunFolder

_REDRAW_SECONDS = 0.5
_OTHER_LINES = 6  # lines of the terminal for the table's frame, its header and its caption
# The last states are hidden first.
_ORDER = {"running": 0, "failed": 1, "lost": 2, "stopped": 3, "waiting": 4, "skipped": 5, "finished": 6}
_COLORS = {"finished": "green", "failed": "red", "running": "cyan"}


class Progress(NamedTuple):
    """Hold the progress of a training, from its `metrics.csv`.

    Attributes:
        done: Number of finished epochs.
        best: Highest validation mIoU; None without a validation.
        seconds: Mean time per epoch in seconds.
    """

    done: int = 0
    best: float | None = None
    seconds: float = 0.0


class JobTable:
    """Show state, epoch, best mIoU and time of each job, from the files that the jobs write.

    Args:
        console: Console to print to; if it is no terminal, a line is printed when the state of a job changes.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self._last: dict[str, str] = {}
        self._drawn = 0.0
        self._epochs: dict[str, int | None] = {}
        self._progress: dict[str, tuple[int, Progress]] = {}  # by job: modification time of the file, progress

    def __enter__(self) -> "JobTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop updating the table."""
        if self._live:
            self._live.stop()

    def show(self, states: Sequence[JobState]) -> None:
        """Show the current states, at most twice per second unless a state changed."""
        now = {state.job.name: state.state for state in states}
        if self._live:
            if now != self._last or time.monotonic() - self._drawn > _REDRAW_SECONDS:
                self._live.update(self.table(states, self._console.height - _OTHER_LINES))
                self._drawn, self._last = time.monotonic(), now
            return
        for state in states:
            if state.state not in {"waiting", self._last.get(state.job.name)}:
                epoch, best, _ = self._cells(state)
                figures = f"  epoch {epoch}  best mIoU {best}" if state.state != "running" else ""
                self._console.print(f"{state.job.name}: {state.state}{figures}", markup=False, highlight=False)
                self._last[state.job.name] = state.state

    def table(self, states: Sequence[JobState], max_rows: int) -> Table:
        """Build the table, with the number of jobs in each state below.

        Args:
            states: States of all jobs.
            max_rows: Maximum number of rows; running and failed jobs have precedence over others.
        """
        counts = Counter(state.state for state in states)
        caption = ", ".join(f"{counts[name]} {name}" for name in _ORDER if counts[name])
        table = Table(caption=caption, caption_justify="left")
        is_queued = any(state.place for state in states)
        for column in ("job", "state", "epoch", "best mIoU", "time", "left", *(["queue"] if is_queued else [])):
            table.add_column(column, justify="left" if column in {"job", "state", "queue"} else "right")
        shown = list(states)
        if len(shown) > max_rows:
            chosen = sorted(states, key=lambda state: _ORDER[state.state])[: max(max_rows, 1)]
            shown = [state for state in states if state in chosen]
        for state in shown:
            epoch, best, left = self._cells(state)
            text = f"[{_COLORS.get(state.state, 'dim')}]{state.state}"
            place = [escape(state.place)] if is_queued else []
            table.add_row(escape(state.job.name), text, epoch, best, _clock(state.seconds), left, *place)
        return table

    def _cells(self, state: JobState) -> tuple[str, str, str]:
        """Return the texts of epoch, best mIoU and time left."""
        name = state.job.name
        if not self._epochs.get(name):
            self._epochs[name] = _max_epochs(state.job)
        epochs, progress = self._epochs[name], self._read(name, RunFolder(state.job.folder))
        known = f"{progress.done}/{epochs}" if epochs else str(progress.done or "")
        is_running = epochs and progress.done and state.state == "running"
        left = _clock(progress.seconds * (epochs - progress.done)) if epochs and is_running else ""
        return known, "" if progress.best is None else f"{progress.best:.3f}", left

    def _read(self, name: str, run: RunFolder) -> Progress:
        try:
            changed = run.metrics.stat().st_mtime_ns
            if name not in self._progress or self._progress[name][0] != changed:
                self._progress[name] = (changed, _progress(run))
        except (OSError, DataError):
            return Progress()
        return self._progress[name][1]


def _progress(run: RunFolder) -> Progress:
    rows = run.read_metrics()
    if not rows:
        return Progress()
    scores = [row["val/miou"] for row in rows if "val/miou" in row]
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    return Progress(int(rows[-1]["epoch"]) + 1, max(scores, default=None), seconds)


def _max_epochs(job: Job) -> int | None:
    """Return the number of epochs of a job; None if it is unknown or unlimited."""
    try:
        config = RunFolder(job.folder).read_job()
    except (OSError, DataError):
        return None
    epochs = int(config["trainer"].get("max_epochs") or -1)
    return epochs if epochs > 0 else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
