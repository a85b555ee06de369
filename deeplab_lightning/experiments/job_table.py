"""A live table of jobs in a terminal, lines of text elsewhere."""

import csv
from collections.abc import Sequence
from types import TracebackType

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deeplab_lightning.experiments.jobs import Job, JobState


class JobTable:
    """Shows state, epoch, best mIoU and time of each job, from the files that the jobs write.

    Args:
        console: Where to; what is no terminal gets a line at each change of a job's state.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        self._last: dict[str, str] = {}

    def __enter__(self) -> "JobTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the table as it is."""
        if self._live:
            self._live.stop()

    def show(self, states: Sequence[JobState]) -> None:
        """Draw the present states."""
        if self._live:
            self._live.update(_table(states))
            return
        for state in states:
            if state.state not in {"waiting", self._last.get(state.job.name)}:
                epoch, best, _ = _progress(state)
                figures = f"  epoch {epoch}  best mIoU {best}" if state.state != "running" else ""
                self._console.print(f"{state.job.name}: {state.state}{figures}", markup=False, highlight=False)
                self._last[state.job.name] = state.state


def _table(states: Sequence[JobState]) -> Table:
    table = Table()
    for column in ("job", "state", "epoch", "best mIoU", "time", "left"):
        table.add_column(column, justify="left" if column in {"job", "state"} else "right")
    for state in states:
        epoch, best, left = _progress(state)
        color = {"finished": "green", "failed": "red", "running": "cyan"}.get(state.state, "dim")
        table.add_row(state.job.name, f"[{color}]{state.state}", epoch, best, _clock(state.seconds), left)
    return table


def _progress(state: JobState) -> tuple[str, str, str]:
    """Epoch, best mIoU and time left, as texts."""
    rows = _metrics(state.job)
    epochs = _max_epochs(state.job)
    if not rows:
        return f"0/{epochs}" if epochs else "", "", ""
    scores = [float(row["val/miou"]) for row in rows if row.get("val/miou")]
    seconds = sum(float(row["seconds"]) for row in rows) / len(rows)
    done = int(rows[-1]["epoch"]) + 1
    left = _clock(seconds * (epochs - done)) if epochs and state.state == "running" else ""
    return f"{done}/{epochs}" if epochs else str(done), f"{max(scores):.3f}" if scores else "", left


def _metrics(job: Job) -> list[dict[str, str]]:
    try:
        with (job.folder / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _max_epochs(job: Job) -> int | None:
    try:
        content = yaml.safe_load((job.folder / "job.yaml").read_text())
    except OSError:
        return None
    epochs = content["trainer"].get("max_epochs")
    return int(epochs) if epochs else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
