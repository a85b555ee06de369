"""Online logging and the upload of offline runs, against a server on this machine."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.wandb_server import WandbServer

CONFIGS = Path(__file__).parents[2] / "configs"
KEY = "a" * 40


@pytest.fixture
def server() -> Iterator[WandbServer]:
    running = WandbServer()
    yield running
    running.stop()


def fit(folder: Path, root: Path, url: str, *more: str) -> subprocess.Popen[str]:
    """A tiny training that logs online."""
    options = {
        "data.dataset": "MaskFolderDataset",
        "data.dataset.root": str(folder),
        "data.dataset.images": "images",
        "data.dataset.masks": "masks",
        "data.dataset.classes": '{"names": [sky, road, car], "ignore_ids": [11]}',
        "data.n_folds": "2",
        "data.batch_size": "2",
        "data.num_workers": "0",
        "data.train_transforms.init_args.crop_size": "32",
        "model.net.backbone": "test_resnet",
        "model.net.pretrained": "false",
        "model.net.aspp_channels": "8",
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "2",
        "output_dir": str(root / "runs"),
        "name": "online",
        "wandb": "online",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "deeplab_lightning", "fit", "-c", str(CONFIGS / "base.yaml"), *words, *more]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_FINISH_TIMEOUT": "5"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.long
def test_a_run_reaches_the_server(mask_folder: Path, tmp_path: Path, server: WandbServer) -> None:
    process = fit(mask_folder, tmp_path, server.url)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    [(run, rows)] = server.history.items()
    assert any("val/miou" in row for row in rows)
    assert "max_epochs" in server.configs[run]
    assert "best/miou" in server.summaries[run]


@pytest.mark.long
def test_a_server_that_dies_does_not_stop_the_training(mask_folder: Path, tmp_path: Path, server: WandbServer) -> None:
    def stop_when_it_logs() -> None:
        while not server.num_requests:
            time.sleep(0.05)
        time.sleep(1)
        server.stop()

    killer = threading.Thread(target=stop_when_it_logs)
    killer.start()
    process = fit(mask_folder, tmp_path, server.url)
    output, _ = process.communicate(timeout=300)
    killer.join()
    assert process.returncode == 0, output
    own = tmp_path / "runs" / "online"
    assert (own / "result.json").is_file()
    assert len((own / "metrics.csv").read_text().splitlines()) == 3
    [log] = (own / "wandb").glob("run-*/run-*.wandb")
    assert b"val/miou" in log.read_bytes()  # what the server did not get, for `wandb sync`


@pytest.mark.long
def test_offline_runs_are_uploaded_later(mask_folder: Path, tmp_path: Path, server: WandbServer) -> None:
    process = fit(mask_folder, tmp_path, server.url, "--wandb", "offline")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert not server.history
    [log] = (tmp_path / "runs" / "online" / "wandb").glob("offline-run-*")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    command = [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", str(log)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("val/miou" in row for rows in server.history.values() for row in rows)
