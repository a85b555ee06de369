"""The folder of a training whose job SLURM starts again."""

import sys
from pathlib import Path

import pytest

from deeplab_lightning.restarts import note_run, restarted_run
from deeplab_lightning.runs import RunFolder


def test_only_the_same_command_of_a_restarted_job_finds_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(sys, "argv", ["deeplab", "fit", "-c", "a.yaml"])
    output = str(tmp_path / "runs")
    note_run(output, RunFolder("x"))
    assert not (tmp_path / "runs").exists()  # no job
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "1")
    note_run(output, RunFolder("y"))
    assert restarted_run(output) is None  # the first process notes it
    monkeypatch.setenv("SLURM_PROCID", "0")
    note_run(output, RunFolder(tmp_path / "runs" / "a"))
    assert restarted_run(output) is None  # the job's first start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    found = restarted_run(output)
    assert found is not None
    assert found.path == tmp_path / "runs" / "a"
    monkeypatch.setattr(sys, "argv", ["deeplab", "fit", "-c", "b.yaml"])
    assert restarted_run(output) is None
