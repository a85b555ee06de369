"""K-fold experiments in a real queue of SLURM, with two nodes on this machine, on tiny data."""

import csv
import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deeplab_lightning.cli import main
from deeplab_lightning.runs import RunFolder
from tests.cluster.engine import Cluster, cluster, kill, reason_to_skip, wait_for, write_held_config
from tests.cluster.hold import holding
from tests.processes import ROOT, Program, run_program

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason_to_skip()), reason=str(reason_to_skip())),
]

EPOCHS = 3
LAUNCHER = ("--launcher", "slurm", "--launcher.gpus", "0", "--launcher.cpus", "1", "--launcher.grace", "30")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path that all may enter, for the sockets
    try:
        with cluster(folder) as started:
            yield started
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, and a configuration of three folds."""
    root = tmp_path_factory.mktemp("data")
    write_held_config(root, epochs=EPOCHS, n_folds=3)
    return root


def environment(slurm: Cluster, hold: Path | None = None) -> dict[str, str]:
    return {**slurm.environment, "PYTHONPATH": str(ROOT), **(holding(hold) if hold else {})}


def deeplab(slurm: Cluster, *words: str, status: int = 0, hold: Path | None = None) -> str:
    """Run a command on the cluster, and return what it prints; its trainings hold until a file exists."""
    done = run_program(*words, env=environment(slurm, hold), timeout=500)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def epochs(run: RunFolder) -> list[int]:
    return [int(row["epoch"]) for row in run.read_metrics()]


def outcomes(run: RunFolder) -> list[str]:
    return [attempt["outcome"] for attempt in json.loads(run.attempts.read_text())]


def pooled(experiment: Path) -> dict[str, object]:
    return {**json.loads((experiment / "cv.json").read_text()), "name": ""}


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    """The same folds, trained by this process without an interruption."""
    main(["kfold", "-c", str(folder / "config.yaml"), "--name", "reference", "--in_process"])
    return folder / "runs" / "reference"


def test_killed_lost_and_timed_out_folds_go_on_to_the_result_of_a_local_run(
    slurm: Cluster, folder: Path, reference: Path
) -> None:
    said = deeplab(
        slurm, "kfold", "-c", str(folder / "config.yaml"), "--name", "queued", *LAUNCHER, "--detach", hold=folder / "go"
    )
    assert "3 folds are in the queue (job 1). To watch them: deeplab status" in said
    own = folder / "runs" / "queued"
    runs = [RunFolder(own / f"fold_{fold}") for fold in range(3)]
    wait_for(lambda: all(run.last.is_file() for run in runs))
    shown = deeplab(slurm, "status", str(own))
    assert "3 running" in shown
    assert "1_0 n1" in shown
    refused = deeplab(slurm, "kfold", "--resume", "--name", "queued", "--output_dir", str(own.parent), status=1)
    assert "3 folds of" in refused
    assert "are in a queue, such as fold_0 as job 1_0" in refused

    nodes = slurm.jobs()
    assert (nodes["1_0"], nodes["1_1"], nodes["1_2"]) == ("n1", "n1", "n2")
    slurm.kill_node("n2")
    [training] = slurm.processes(f"fit -c {runs[0].job}")
    kill(training, signal.SIGKILL)
    slurm.signal_job("1_1", "USR1")
    wait_for(lambda: not slurm.jobs(), 500)
    assert [outcomes(run) for run in runs] == [
        ["killed", "finished"],
        ["continued", "finished"],
        ["lost", "finished"],
    ]
    assert all(epochs(run) == list(range(EPOCHS)) for run in runs)
    assert pooled(own) == pooled(reference)
    assert (own / "report.html").is_file()
    assert "3 finished" in deeplab(slurm, "status", str(own))


def test_a_cancelled_experiment_is_resumed_and_a_killed_job_starts_again(
    slurm: Cluster, folder: Path, reference: Path
) -> None:
    slurm.start_node("n2")
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "cancelled")
    go = folder / "go-cancelled"
    deeplab(slurm, *words, *LAUNCHER, "--jobs", "1", "--folds", "0,1", "--detach", hold=go)
    own = folder / "runs" / "cancelled"
    first, second = RunFolder(own / "fold_0"), RunFolder(own / "fold_1")
    wait_for(first.last.is_file)
    assert not second.log.exists()  # --jobs 1
    said = deeplab(slurm, "cancel", str(own))
    assert "2 folds of" in said
    assert slurm.jobs() == {}
    assert outcomes(first) == ["stopped"]
    assert first.last.is_file()
    assert "2 stopped" in deeplab(slurm, "status", str(own))

    again = ("kfold", "--resume", "--name", "cancelled", "--output_dir", str(own.parent))
    watching = Program(*again, *LAUNCHER, env=environment(slurm, go))
    wait_for(second.last.is_file)
    [job] = slurm.processes(f"queued-fold {own} {second.path}")
    go.touch()
    kill(job, signal.SIGKILL)  # SLURM takes this for a failure: the last job starts the fold again
    said, errors = watching.communicate(timeout=300)
    assert watching.wait() == 0, said + errors
    assert "cancelled/fold_1: lost" in said
    assert outcomes(first) == ["finished"]
    assert outcomes(second) == ["lost", "finished"]
    assert all(epochs(RunFolder(own / f"fold_{fold}")) == list(range(EPOCHS)) for fold in range(3))
    assert pooled(own) == pooled(reference)


def test_a_grid_is_compared_by_its_last_job(slurm: Cluster, folder: Path) -> None:
    channels = {label: f"--model.net.aspp_channels {count}" for label, count in (("narrow", 4), ("wide", 8))}
    options = f"-c {folder / 'config.yaml'} --trainer.max_epochs 1"
    grid = {"output_dir": str(folder / "runs"), "options": options, "folds": [0], "axes": {"channels": channels}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    said = deeplab(slurm, "grid", "-c", str(folder / "grid.yaml"), *LAUNCHER, "--detach")
    assert "2 folds are in the queue" in said
    wait_for(lambda: not slurm.jobs(), 300)
    own = folder / "runs" / "grid"
    assert (own / "report.html").is_file()
    with (own / "compare.csv").open() as file:
        assert [row["experiment"] for row in csv.DictReader(file)] == ["narrow", "wide"]


def test_a_single_training_goes_on_in_its_folder_after_the_time_limit(
    slurm: Cluster, folder: Path, reference: Path
) -> None:
    """It opened a second folder, and began with the first epoch."""
    command = [sys.executable, "-m", "deeplab_lightning", "fit", "-c", str(folder / "config.yaml"), "--name", "single"]
    log, own = folder / "single.log", RunFolder(folder / "runs" / "single")
    options = ["--ntasks=1", "--requeue", "--open-mode=append", f"--output={log}", f"--chdir={ROOT}"]
    script = f"#!/bin/bash\nsrun {shlex.join(command)}\n"
    slurm.call(
        "sbatch", *options, text=script, env={**holding(folder / "go"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    [job] = slurm.jobs()
    wait_for(own.last.is_file)
    slurm.call("scancel", "--signal=USR1", job)
    wait_for(lambda: not slurm.jobs())
    assert log.read_text().count("stopped by the time limit; the job is put into the queue again.") == 1
    assert epochs(own) == list(range(EPOCHS))
    assert [path.name for path in own.path.parent.glob("single*")] == ["single"]
    alone, fold = own.read_result(), RunFolder(reference / "fold_0").read_result()
    assert alone is not None
    assert fold is not None
    assert alone["last"] == fold["last"]


def test_seeds_are_pooled_by_the_last_job(slurm: Cluster, folder: Path) -> None:
    seeds = ("--seeds", "3,4", "--folds", "0", "--trainer.max_epochs", "1")
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "seeds", *LAUNCHER)
    said = deeplab(slurm, *words, *seeds, "--detach")
    assert "2 folds are in the queue" in said
    wait_for(lambda: not slurm.jobs(), 300)
    own = folder / "runs" / "seeds"
    for seed in (3, 4):
        result = RunFolder(own / f"seed_{seed}" / "fold_0").read_result()
        assert result is not None
        assert result["seed"] == seed
        assert pooled(own / f"seed_{seed}")["folds"] == [0]
    assert (own / "report.html").is_file()
    assert "2 finished" in deeplab(slurm, "status", str(own))


def test_preempted_trainings_go_on_in_their_folders(slurm: Cluster, folder: Path, reference: Path) -> None:
    """A fold in the queue and a training of `srun` give way to a job of higher priority, and are queued again."""
    wait_for(lambda: "down" not in slurm.call("sinfo", "--noheader", "--format=%t"), 60)
    config = str(folder / "config.yaml")
    deeplab(
        slurm, "kfold", "-c", config, "--name", "preempted", *LAUNCHER, "--folds", "1", "--detach", hold=folder / "go"
    )
    fold = RunFolder(folder / "runs" / "preempted" / "fold_1")
    command = [sys.executable, "-m", "deeplab_lightning", "fit", "-c", config, "--name", "taken"]
    alone, log = RunFolder(folder / "runs" / "taken"), folder / "taken.log"
    options = ["--ntasks=1", "--requeue", "--open-mode=append", f"--output={log}", f"--chdir={ROOT}"]
    given = {**holding(folder / "go"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    slurm.call("sbatch", *options, text=f"#!/bin/bash\nsrun {shlex.join(command)}\n", env=given)
    wait_for(lambda: fold.last.is_file() and alone.last.is_file())
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    slurm.call("sbatch", *urgent, text="#!/bin/bash\nsleep 1\n")
    wait_for(lambda: not slurm.jobs(), 300)
    assert outcomes(fold) == ["stopped", "finished"]
    assert log.read_text().count("Run folder:") == 2
    assert [path.name for path in alone.path.parent.glob("taken*")] == ["taken"]
    for run, number in ((fold, 1), (alone, 0)):
        assert epochs(run) == list(range(EPOCHS))
        result, expected = run.read_result(), RunFolder(reference / f"fold_{number}").read_result()
        assert result is not None
        assert expected is not None
        assert result["last"] == expected["last"]


def test_one_training_on_two_nodes_ends_with_a_lost_process_and_goes_on(slurm: Cluster, folder: Path) -> None:
    """Two tasks of `srun`, as configs/trainer/multi_node.yaml says."""
    overlay = ["-c", str(ROOT / "configs" / "trainer" / "multi_node.yaml"), "--trainer.accelerator", "cpu"]
    overlay += ["--trainer.devices", "1", "--trainer.precision", "32-true", "--trainer.sync_batchnorm", "false"]
    command = [sys.executable, "-m", "deeplab_lightning", "fit", "-c", str(folder / "config.yaml"), *overlay]
    command += ["--data.num_workers", "0", "--name", "nodes", "--ckpt_path", "last"]
    log, own = folder / "nodes.log", RunFolder(folder / "runs" / "nodes")
    options = ["--nodes=2", "--ntasks-per-node=1", "--open-mode=append", f"--output={log}", f"--chdir={ROOT}"]
    # The names of the nodes are no addresses here, where both are this machine.
    script = f"#!/bin/bash\nexport MASTER_ADDR=127.0.0.1\nsrun --kill-on-bad-exit=1 {shlex.join(command)}\n"
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    slurm.call("sbatch", *options, text=script, env={**holding(folder / "go"), **given})
    wait_for(own.last.is_file)
    trainings = [pid for pid in slurm.processes("--name nodes") if b"srun" not in executable(pid)]
    assert len(trainings) == 2
    kill(trainings[1], signal.SIGKILL)
    wait_for(lambda: not slurm.jobs(), 60)
    assert own.last.is_file()
    assert own.read_result() is None
    slurm.call("sbatch", *options, text=script, env=given)
    wait_for(lambda: not slurm.jobs())
    assert epochs(own) == list(range(EPOCHS)), log.read_text()[-3000:]
    assert [path.name for path in own.path.parent.glob("nodes*")] == ["nodes"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.num_workers", "0", "--name", "one-node"]
    deeplab(slurm, "fit", "-c", str(folder / "config.yaml"), *two)
    results = [RunFolder(folder / "runs" / name).read_result() for name in ("nodes", "one-node")]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0]["last"] == results[1]["last"]


def executable(pid: int) -> bytes:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")[0]


def test_what_slurm_refuses_is_told_in_one_line(slurm: Cluster, folder: Path) -> None:
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "refused", *LAUNCHER, "--folds", "0")
    said = deeplab(slurm, *words, "--launcher.partition", "nope", status=1)
    assert "error: sbatch failed: invalid partition specified: nope" in said.splitlines()[-1]
    assert not (folder / "runs" / "refused" / "queue.json").exists()
    assert slurm.jobs() == {}
