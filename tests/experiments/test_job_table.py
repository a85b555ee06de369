"""The live table, on files as jobs would have written them."""

from io import StringIO
from pathlib import Path

import yaml
from rich.console import Console

from deeplab_lightning.experiments import job_table
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.jobs import Job, JobState
from deeplab_lightning.runs import RunFolder

STATES = ["finished", "failed", "running", "waiting"]


def states(folder: Path, count: int, *, max_epochs: int = 10) -> list[JobState]:
    """Jobs of every state in turn; all but the waiting ones have finished two epochs of 30 seconds each."""
    made = []
    for index in range(count):
        own = folder / f"{index}"
        own.mkdir()
        (own / "job.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": max_epochs}}))
        state = STATES[index % 4]
        if state != "waiting":
            (own / "metrics.csv").write_text("epoch,seconds,val/miou\n0,30,0.5\n1,30,0.25\n")
        job = Job(f"experiment [b]/fold_{index}", [], own, lambda: False)
        made.append(JobState(job, state, seconds=75.0))
    return made


def drawn(jobs: list[JobState], *, max_rows: int = 50) -> str:
    file = StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None)
    console.print(JobTable(console).table(jobs, max_rows))
    return file.getvalue()


def test_a_row_shows_epoch_best_and_time_left(tmp_path: Path) -> None:
    lines = drawn(states(tmp_path, 4)).splitlines()
    running = next(line for line in lines if "running" in line and "fold" in line)
    assert [cell.strip() for cell in running.strip("│").split("│")] == [
        "experiment [b]/fold_2", "running", "2/10", "0.500", "1:15", "4:00"
    ]  # fmt: skip
    assert "0/10" in next(line for line in lines if "waiting" in line and "fold" in line)
    assert "1 running, 1 failed, 1 waiting, 1 finished" in lines[-1]


def test_trainings_without_a_number_of_epochs_show_no_time_left(tmp_path: Path) -> None:
    text = drawn(states(tmp_path, 4, max_epochs=-1))
    assert "-1" not in text


def test_long_tables_show_running_and_failed_jobs_first(tmp_path: Path) -> None:
    text = drawn(states(tmp_path, 40), max_rows=20)
    rows = [line for line in text.splitlines() if "fold_" in line]
    assert len(rows) == 20
    assert sum("running" in row for row in rows) == sum("failed" in row for row in rows) == 10
    assert "10 running, 10 failed, 10 waiting, 10 finished" in text


def test_files_are_read_again_only_when_they_change(tmp_path: Path, monkeypatch: object) -> None:
    console = Console(file=StringIO(), width=100)
    [job, *_], table, read = states(tmp_path, 1), JobTable(console), []
    original = job_table._progress

    def counted(run: RunFolder) -> job_table.Progress:
        read.append(run)
        return original(run)

    monkeypatch.setattr(job_table, "_progress", counted)  # type: ignore[attr-defined]
    for _ in range(3):
        table.table([job], 10)
    assert len(read) == 1
