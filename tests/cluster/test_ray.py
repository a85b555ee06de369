"""A K-fold experiment on two nodes of Ray on this machine, one of which is lost, on tiny data."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deeplab_lightning.cli import main
from deeplab_lightning.runs import RunFolder
from tests.cluster.engine import descendants, kill, wait_for, write_held_config
from tests.cluster.hold import holding
from tests.cluster.test_slurm import EPOCHS, epochs, pooled
from tests.processes import ROOT, Program, run_program

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MEMORY = 80_000_000  # bytes of the object store of a node
LAUNCHER = ("--launcher", "ray", "--launcher.gpus", "0", "--launcher.cpus", "1")


@contextmanager
def ray_cluster(num_cpus: int = 1) -> Iterator[Any]:
    """Start a cluster of one node, whose processes are started with this checkout, and stop it at the end."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    lost_after = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}  # some seconds instead of 30
    head = {"num_cpus": num_cpus, "object_store_memory": MEMORY, "_system_config": lost_after}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


def raylet(node: Any) -> "subprocess.Popen[bytes]":
    """Return the process of a node that its tasks hang on."""
    [process] = [own.process for own in node.all_processes["raylet"]]
    return process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, and a configuration of two folds."""
    root = tmp_path_factory.mktemp("data")
    write_held_config(root, epochs=EPOCHS, n_folds=2)
    return root


def trainings(path: Path) -> list[int]:
    """Return the ids of the processes that train a fold."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if f"fit -c {path}/job.yaml" in line:
            found.append(int(process.name))
    return found


def test_killed_and_lost_folds_go_on_to_the_result_of_a_local_run(ray: Any, folder: Path) -> None:
    main(["kfold", "-c", str(folder / "config.yaml"), "--name", "reference", "--in_process"])
    second = ray.add_node(num_cpus=1, object_store_memory=MEMORY)
    environment = {**os.environ, **holding(folder / "go"), "PYTHONPATH": str(ROOT)}
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "a", *LAUNCHER, "--launcher.address", ray.address)
    program = Program(*words, env=environment)
    own = folder / "runs" / "a"
    runs = [RunFolder(own / f"fold_{fold}") for fold in range(2)]
    wait_for(lambda: all(run.last.is_file() for run in runs))
    on_second = [run for run in runs if set(trainings(run.path)) & set(descendants(raylet(second).pid))]
    assert len(on_second) == 1
    [other] = [run for run in runs if run not in on_second]
    ray.remove_node(second, allow_graceful=False)
    kill(trainings(other.path)[0], signal.SIGKILL)
    said, errors = program.communicate(timeout=400)
    assert program.wait() == 0, said + errors
    assert all(epochs(run) == list(range(EPOCHS)) for run in runs)
    assert all(run.log.read_text().count("Run folder:") == 2 for run in runs)
    assert pooled(own) == pooled(folder / "runs" / "reference")


def test_seeds_train_on_the_cluster(ray: Any, folder: Path) -> None:
    words = (
        "kfold",
        "-c",
        str(folder / "config.yaml"),
        "--name",
        "seeds",
        *LAUNCHER,
        "--launcher.address",
        ray.address,
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    more = ("--seeds", "3,4", "--folds", "0", "--trainer.max_epochs", "1")
    said = run_program(*words, *more, env=environment, check=True).stdout
    assert "seeds: pooled mIoU of 2 seeds" in said
    results = [RunFolder(folder / "runs" / "seeds" / f"seed_{seed}" / "fold_0").read_result() for seed in (3, 4)]
    assert [result and result["seed"] for result in results] == [3, 4]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "error: no Ray cluster answers at 127.0.0.1:9."),
        ("head", "error: launcher.address must be HOST"),
    ],
)
def test_without_a_cluster_the_error_is_one_line(folder: Path, address: str, message: str) -> None:
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "none", *LAUNCHER)
    done = run_program(*words, "--launcher.address", address)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
