"""A search by the real Ray Tune on this machine, killed and resumed, on tiny data."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import yaml
from PIL import Image

from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.runs import RunFolder
from tests.cluster.engine import kill, wait_for, write_held_config
from tests.cluster.hold import holding
from tests.cluster.test_ray import MEMORY, ray_cluster, raylet, trainings
from tests.cluster.test_slurm import epochs, outcomes
from tests.processes import ROOT, Program, run_program

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EPOCHS = 3
RATE = "model.optimizer.init_args.lr"


def write_search(folder: Path) -> Path:
    """Write images that hold their masks, and a search of two learning rates, of which one learns nothing."""
    write_held_config(folder, epochs=EPOCHS, n_folds=3)
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
    first = Program(*words, env={**environment, **holding(tmp_path / "go")})
    wait_for(good.last.is_file)
    kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not trainings(good.path), 60)
    assert len(epochs(good)) < EPOCHS
    assert "1 lost" in run_program("status", str(own), check=True).stdout

    second = Program(*words, env=environment)
    wait_for(lambda: trainings(bad.path))
    kill(trainings(bad.path)[0], signal.SIGKILL)  # Tune starts it again
    wait_for(lambda: epochs(bad))
    [slow] = trainings(bad.path)
    kill(slow, signal.SIGSTOP)  # Tune killed it when it needed more than 15 s to end
    wait_for(lambda: bad.read_search_answer() == RunFolder.SEARCH_STOPS)
    time.sleep(17)
    kill(slow, signal.SIGCONT)
    said, errors = second.communicate(timeout=500)
    assert second.wait() == 0, said + errors
    assert epochs(good) == list(range(EPOCHS))
    assert good.log.read_text().count("Run folder:") == 2
    assert (epochs(bad), outcomes(bad)) == ([0], ["killed", "stopped"])
    assert "Best: trial 0, " in said
    assert "num_trials is 3, but random found 2 settings to try." in said.replace("optuna", "random")
    refused = run_program(*words, "--data.fold", "1")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "was started with data.fold 0, got 1" in refused.stderr
    copy = shutil.copytree(bad.path, own / "trial_2")
    refused = run_program(*words)
    assert refused.returncode == 1
    assert f"{copy} is no trial of this search, which has 2" in refused.stderr.replace("\n", " ")
    shutil.rmtree(copy)
    settings = yaml.safe_load((own / "best_settings.yaml").read_text())
    assert settings == {"model": {"optimizer": {"init_args": {"lr": 0.02}}}}

    assert "1 stopped, 1 finished" in run_program("status", str(own), check=True).stdout
    compared = run_program("compare", str(good), str(bad), check=True).stdout.replace("\n", " ")
    assert "trial_1 was stopped early, so this is no test." in compared
    assert f"trial_1 was stopped by the search search after 1 of {EPOCHS} epochs." in compared
    last = ("-c", str(tmp_path / "config.yaml"), "--model.optimizer", "AdamW", "-c", str(own / "best_settings.yaml"))
    assert resolve_fit_config(list(last))["model"]["optimizer"] == good.read_job()["model"]["optimizer"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_trials_of_lost_nodes_go_on_and_end(tmp_path: Path) -> None:
    """One failed whose training still held its folder; one that was being stopped was left without a result."""
    own = tmp_path / "runs" / "search"
    good, bad = (RunFolder(own / f"trial_{number}") for number in range(2))
    words = ["tune", "-c", str(write_search(tmp_path)), "--launcher.gpus", "0", "--launcher.cpus", "1", "--jobs", "1"]
    with ray_cluster(num_cpus=0) as cluster:
        first = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        environment = {**os.environ, **holding(tmp_path / "go"), "PYTHONPATH": str(ROOT)}
        program = Program(*words, "--launcher.address", cluster.address, env=environment)
        wait_for(good.last.is_file)
        # Until its parent has waited for it, a dead raylet seems alive to its tasks. So the training goes on, as on a
        # node without network.
        raylet(first).kill()
        second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        wait_for(lambda: outcomes(good)[:2] == ["lost", "lost"] or program.poll() is not None)
        raylet(first).wait()

        wait_for(lambda: epochs(bad))
        [training] = trainings(bad.path)
        kill(training, signal.SIGSTOP)  # so that it is not stopped in time
        wait_for(lambda: bad.read_search_answer() == RunFolder.SEARCH_STOPS)
        raylet(second).kill()
        raylet(second).wait()
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        said, errors = program.communicate(timeout=300)
        assert program.wait() == 0, said + errors
    assert (epochs(good), outcomes(good)) == (list(range(EPOCHS)), ["lost", "lost", "finished"])
    assert outcomes(bad) == ["lost", "stopped"]
    assert epochs(bad) in ([0], [0, 1])  # the second start may end an epoch before it is told to stop
    assert "trial_0 starts again: the actor's node was terminated" in said
    assert f"trial_0 starts again: {good.path}: another process still writes here" in said
    assert "trial_1 was lost with its node while it was stopped" in said
    assert "Best: trial 0, " in said
    assert errors == ""
    assert "trial_1 was stopped early" in run_program("compare", str(good.path), str(bad.path), check=True).stdout


def test_two_searches_on_one_machine_have_a_ray_each() -> None:
    """The second one joined what the first one had started for itself, and died with it."""
    pytest.importorskip("ray.tune")
    code = """
import ray
from deeplab_lightning.experiments.launchers.options import RayOptions
from deeplab_lightning.experiments.launchers.ray import connect
connect(RayOptions(), is_starting=True)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""
    environment, addresses = {**os.environ, "PYTHONPATH": str(ROOT)}, []
    with ExitStack() as stack:
        for _ in range(2):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stdin=PIPE, stdout=PIPE)
            )
            assert process.stdout is not None
            addresses.append(process.stdout.readline())
    assert len(set(addresses)) == 2


def test_sigterm_ends_a_search_and_its_trainings(tmp_path: Path) -> None:
    """Ray's handler of the signal aborted the process with a stack trace."""
    pytest.importorskip("ray.tune")
    words = ("tune", "-c", str(write_search(tmp_path)), "--launcher.gpus", "0", "--launcher.cpus", "1", "--jobs", "1")
    program = Program(*words, env={**os.environ, "PYTHONPATH": str(ROOT), **holding(tmp_path / "go")})
    run = RunFolder(tmp_path / "runs" / "search" / "trial_0")
    wait_for(lambda: epochs(run))
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=60)
    assert (program.wait(), errors) == (143, "stopped by SIGTERM. To continue, run the same command again.\n")
    wait_for(lambda: not trainings(run.path), 60)
