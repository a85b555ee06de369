"""One training on two hosts, which are network namespaces of this machine, started by torchrun."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deeplab_lightning.runs import RunFolder
from tests.cluster.engine import descendants, kill, wait_for, write_held_config
from tests.cluster.hold import holding
from tests.processes import ROOT, run_program

HOSTS = ("deeplab-a", "deeplab-b")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
EPOCHS = 3


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def reason_to_skip() -> str | None:
    """Return why there can be no namespaces here; None if there can."""
    if shutil.which("ip") is None:
        return "ip not installed: apt-get install iproute2"
    if os.getuid() != 0:
        return "network namespaces need root"
    name = f"deeplab-try-{os.getpid()}"  # another test process tries as well
    done = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True)
    ip("netns", "delete", name, check=False)
    return f"no network namespaces here: {done.stderr.decode().strip()}" if done.returncode else None


REASON = reason_to_skip()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(REASON), reason=str(REASON)),
]


@pytest.fixture(scope="module", autouse=True)
def hosts() -> Iterator[None]:
    """Two hosts with a cable between them."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "deep0", "netns", HOSTS[0], "type", "veth", "peer", "name", "deep0", "netns", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            ip("-n", host, "address", "add", f"{address}/24", "dev", "deep0")
            for device in ("lo", "deep0"):
                ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            ip("netns", "delete", host, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_held_config(root, epochs=EPOCHS, n_folds=2)
    return root


def start(folder: Path, host: int, *words: str, hold: Path | None = None) -> "subprocess.Popen[str]":
    """Start the part of a training on a host, as configs/trainer/multi_node.yaml says it."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(host)]
    run += ["--nproc_per_node", "1", "--master_addr", ADDRESSES[0], "--master_port", "29517"]
    fit = ["-m", "deeplab_lightning", "fit", "-c", str(folder / "config.yaml")]
    fit += ["-c", str(ROOT / "configs" / "trainer" / "multi_node.yaml"), "--trainer.accelerator", "cpu"]
    fit += ["--trainer.devices", "1", "--trainer.precision", "32-true", "--trainer.sync_batchnorm", "false"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "deep0", "OMP_NUM_THREADS": "1"}
    environment |= holding(hold) if hold else {}
    with (folder / f"host-{host}.log").open("w") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", HOSTS[host], *run, *fit, "--data.num_workers", "0", *words],
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )


def end(part: "subprocess.Popen[str]") -> None:
    """Kill a process and all below it."""
    for pid in [part.pid, *descendants(part.pid)]:
        kill(pid, signal.SIGKILL)
    part.wait()


def epochs(run: RunFolder) -> list[int]:
    return [int(row["epoch"]) for row in run.read_metrics()]


def test_a_training_ends_when_a_host_is_lost_and_goes_on_to_the_result_of_one_machine(folder: Path) -> None:
    words = ["--name", "two", "--ckpt_path", "last"]
    run = RunFolder(folder / "runs" / "two")
    go = folder / "go"
    parts = [start(folder, host, *words, hold=go) for host in (0, 1)]
    try:
        wait_for(run.last.is_file)
        end(parts[1])
        go.touch()
        assert parts[0].wait(timeout=60) == 1, "the other host went on, or hung"
        assert run.last.is_file()
        assert run.read_result() is None
        parts = [start(folder, host, *words) for host in (0, 1)]
        assert [part.wait(timeout=240) for part in parts] == [0, 0], (folder / "host-0.log").read_text()[-3000:]
    finally:
        for part in parts:
            end(part)
    assert epochs(run) == list(range(EPOCHS))
    assert [path.name for path in run.path.parent.iterdir()] == ["two"]

    local = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run_program("fit", "-c", str(folder / "config.yaml"), "--name", "one", *local, "--data.num_workers", "0",
                check=True)  # fmt: skip
    results = [RunFolder(folder / "runs" / name).read_result() for name in ("two", "one")]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0]["last"] == results[1]["last"]


def test_an_unnamed_training_has_one_folder_though_a_host_starts_later(folder: Path) -> None:
    """The name holds the second of the start, which each host chose for itself."""
    runs = folder / "unnamed"
    words = ["--trainer.max_epochs", "1", "--output_dir", str(runs)]
    first = start(folder, 0, *words)
    parts = [first]
    try:
        time.sleep(1.5)  # another second
        parts.append(start(folder, 1, *words))
        assert [part.wait(timeout=240) for part in parts] == [0, 0], (folder / "host-0.log").read_text()[-3000:]
    finally:
        for part in parts:
            end(part)
    assert len([*runs.iterdir()]) == 1
