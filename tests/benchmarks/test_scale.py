"""What thousands of trainings cost the programs that start, watch and compare them. No training runs here."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.jobs import Job, run_jobs
from deeplab_lightning.experiments.launchers import slurm
from deeplab_lightning.experiments.launchers.options import SlurmOptions
from deeplab_lightning.experiments.launchers.place import describe_place
from deeplab_lightning.experiments.queue import Queue, QueueStates
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import table_console
from tests.benchmarks.measure import write

NUM_JOBS, AT_ONCE, JOB_SECONDS = 2000, 100, 1.0
NUM_EXPERIMENTS, N_FOLDS, NUM_IMAGES, NUM_CLASSES = 100, 5, 500, 11
CLASSES = [f"class {index}" for index in range(NUM_CLASSES)]


class Sleeper:
    """A process that needs no processor."""

    def __init__(self) -> None:
        self._end = time.monotonic() + JOB_SECONDS

    def poll(self) -> int | None:
        return 0 if time.monotonic() >= self._end else None

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class SleepLauncher:
    def start(self, job: Job, command: Sequence[str], slot: int) -> Sleeper:
        return Sleeper()


def test_two_thousand_jobs_cost_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loop of `kfold` and `grid`, with the table that it shows."""
    jobs = [Job(f"job {index}", [["fit"]], tmp_path / str(index), lambda: True) for index in range(NUM_JOBS)]
    started, processor = time.monotonic(), time.process_time()
    with JobTable(table_console()) as table:
        states = run_jobs(jobs, SleepLauncher(), at_once=AT_ONCE, on_change=table.show)
    seconds, processor = time.monotonic() - started, time.process_time() - processor
    assert {state.state for state in states} == {"finished"}
    ideal = NUM_JOBS / AT_ONCE * JOB_SECONDS
    figures = {"jobs": NUM_JOBS, "at_once": AT_ONCE, "seconds": seconds, "ideal": ideal, "processor": processor}
    with capsys.disabled():
        print(write("scale_jobs", figures))


def write_experiments(folder: Path) -> list[Path]:
    """Write experiments of five folds, as `kfold` leaves them."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(NUM_EXPERIMENTS):
        files = ExperimentFolder(folder / f"e{number:03d}")
        settings = {"data": {"n_folds": N_FOLDS}, "trainer": {"max_epochs": 10}, "model": {"net": files.path.name}}
        files.write_config(settings)
        for fold in range(N_FOLDS):
            run, held_out = files.fold(fold), range(fold, NUM_IMAGES, N_FOLDS)
            matrices = rng.integers(0, 50, (len(held_out), NUM_CLASSES, NUM_CLASSES))
            matrices += np.eye(NUM_CLASSES, dtype=np.int64) * 2000
            run.path.mkdir()
            PerImageConfusion.of((f"{i:04d}.png", m) for i, m in zip(held_out, matrices, strict=True)).write(run.images)
            figures = {"miou": 0.5, "iou": dict.fromkeys(CLASSES, 0.5)}
            run.write_result({"fold": fold, "n_folds": N_FOLDS, "val": figures, "seconds": 60, "cost": {}})
            run.write_metrics([{"epoch": float(e), "step": 1.0, "seconds": 6.0, "val/miou": 0.5} for e in range(10)])
        made.append(files.path)
    return made


def timed(call: Callable[[], Any]) -> list[float]:
    """Return median, lowest and highest seconds of three calls."""
    found = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        found.append(round(time.perf_counter() - started, 3))
    return [statistics.median(found), min(found), max(found)]


def deeplab(*words: str, **environment: str) -> None:
    command = [sys.executable, "-m", "deeplab_lightning", *words]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})


def test_five_hundred_runs_are_watched_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` with a queue that answers like SLURM, one question per look; `compare` with its page."""
    experiments = write_experiments(tmp_path / "grid")
    folds = [str(ExperimentFolder(path).fold(fold).path) for path in experiments for fold in range(N_FOLDS)]
    files = ExperimentFolder(tmp_path / "grid")
    Queue(
        files.path,
        "grid",
        SlurmOptions(),
        None,
        False,
        {str(path): {"folds": list(range(N_FOLDS)), "group": path.name} for path in experiments},
        folds={fold: {"token": "a", "index": index} for index, fold in enumerate(folds)},
        submissions={"a": {"id": "5", "place": describe_place()}},
    ).write()
    tools = tmp_path / "bin"
    tools.mkdir()
    lines = "\n".join(f"5_{index}|RUNNING|n{index % 60}|None" for index in range(len(folds)))
    (tools / "squeue").write_text(f"#!/bin/sh\necho asked >> {tmp_path / 'asked'}\ncat <<'END'\n{lines}\nEND\n")
    (tools / "squeue").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    figures: dict[str, Any] = {
        "runs": len(folds),
        "status": timed(lambda: deeplab("status", str(files.path), PATH=path)),
    }
    assert (tmp_path / "asked").read_text().count("asked") == 3  # once each time
    tasks = {f"5_{index}": slurm.Task("RUNNING", "n1", "None") for index in range(len(folds))}
    states = QueueStates(files.path)
    states.read(tasks)
    figures["look"] = timed(lambda: states.read(tasks))
    page = tmp_path / "page.html"
    words = [*map(str, experiments[:20]), "--html", str(page)]
    figures["compare_100"] = timed(lambda: deeplab("compare", *words))
    figures["page_100_megabytes"] = page.stat().st_size / 1e6
    words = [*map(str, experiments), "--html", str(page)]
    figures["compare_500"] = timed(lambda: deeplab("compare", *words))
    figures["page_500_megabytes"] = page.stat().st_size / 1e6
    with capsys.disabled():
        print(write("scale_runs", figures))
