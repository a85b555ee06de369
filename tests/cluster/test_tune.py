"""A search by the real Ray Tune on this machine, killed and resumed, on tiny data."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.runs import RunFolder
from tests.cluster.engine import kill, wait_for, write_slow_config
from tests.cluster.pause import VARIABLE
from tests.cluster.test_ray import trainings
from tests.cluster.test_slurm import epochs, outcomes
from tests.processes import ROOT, Program, run_program

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EPOCHS = 3
RATE = "model.optimizer.init_args.lr"


def write_search(folder: Path) -> Path:
    """Write images that hold their masks, and a search of two learning rates, of which one learns nothing."""
    write_slow_config(folder, epochs=EPOCHS, n_folds=3)
    for path in (folder / "images").iterdir():
        mask = np.asarray(Image.open(folder / "masks" / path.name))
        Image.fromarray(np.stack([mask * 20] * 3, axis=-1)).save(path)
    options = f"-c {folder / 'config.yaml'} --model.optimizer AdamW"
    search = {"output_dir": str(folder / "runs"), "options": options, "num_trials": 3,
              "parameters": {RATE: {"values": [1e-9, 0.02]}}}  # fmt: skip
    (folder / "search.yaml").write_text(yaml.safe_dump(search))
    return folder / "search.yaml"


def test_a_killed_search_goes_on_and_its_trials_are_runs(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ("tune", "-c", str(write_search(tmp_path)), "--launcher.gpus", "0", "--launcher.cpus", "1", "--jobs", "1")
    own = tmp_path / "runs" / "search"
    good, bad = (RunFolder(own / f"trial_{number}") for number in range(2))
    first = Program(*words, env={**environment, VARIABLE: "3"})
    wait_for(good.last.is_file)
    kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not trainings(good.path), 60)
    assert len(epochs(good)) < EPOCHS
    assert "1 lost" in run_program("status", str(own), check=True).stdout

    second = Program(*words, env=environment)
    wait_for(lambda: trainings(bad.path))
    kill(trainings(bad.path)[0], signal.SIGKILL)  # Tune starts it again
    said, errors = second.communicate(timeout=500)
    assert second.wait() == 0, said + errors
    assert epochs(good) == list(range(EPOCHS))
    assert good.log.read_text().count("Run folder:") == 2
    assert (epochs(bad), outcomes(bad)) == ([0], ["killed", "stopped"])
    assert "Best: trial 0, " in said
    settings = yaml.safe_load((own / "best_settings.yaml").read_text())
    assert settings == {"model": {"optimizer": {"init_args": {"lr": 0.02}}}}

    assert "1 stopped, 1 finished" in run_program("status", str(own), check=True).stdout
    compared = run_program("compare", str(good), str(bad), check=True).stdout.replace("\n", " ")
    assert "trial_1 was stopped early, so this is no test." in compared
    assert f"trial_1 was stopped by the search search after 1 of {EPOCHS} epochs." in compared
    last = ("-c", str(tmp_path / "config.yaml"), "--model.optimizer", "AdamW", "-c", str(own / "best_settings.yaml"))
    assert resolve_fit_config(list(last))["model"]["optimizer"] == good.read_job()["model"]["optimizer"]


def test_sigterm_ends_a_search_and_its_trainings(tmp_path: Path) -> None:
    """Ray's handler of the signal aborted the process with a stack trace."""
    pytest.importorskip("ray.tune")
    words = ("tune", "-c", str(write_search(tmp_path)), "--launcher.gpus", "0", "--launcher.cpus", "1", "--jobs", "1")
    program = Program(*words, env={**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: "5"})
    run = RunFolder(tmp_path / "runs" / "search" / "trial_0")
    wait_for(lambda: epochs(run))
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=60)
    assert (program.wait(), errors) == (143, "stopped by SIGTERM. To continue, run the same command again.\n")
    wait_for(lambda: not trainings(run.path), 60)
