"""A training that was killed and resumed ends with the weights of one that was not, bit for bit.

Every case runs the real command in processes, with dropout, and waits for the checkpoint that it is about.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from deeplab_lightning.tables import read_csv
from tests.conftest import draw_noise_data, noise_config, shared_folder
from tests.processes import Program, run_program

LONG = ("--trainer.max_epochs", "4")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", **os.environ}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_training(tmp_path)
    return tmp_path


def write_training(folder: Path) -> None:
    """Write data and `config.yaml` of a training with dropout."""
    draw_noise_data(folder)
    config = noise_config(
        folder,
        trainer={"num_sanity_val_steps": 1, "log_every_n_steps": 1, "enable_model_summary": False},
        net={"backbone": "test_efficientnet", "dropout": 0.5},
        data={"n_folds": 5, "batch_size": 1},
    )
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, **config}))


def words_of(folder: Path, name: str, *options: str) -> list[str]:
    return ["fit", "-c", str(folder / "config.yaml"), "--name", name, *options]


def finish(folder: Path, name: str, *options: str) -> None:
    run_program(*words_of(folder, name, *options), env=ENVIRONMENT, check=True)


def whole(factory: pytest.TempPathFactory, *options: str) -> Path:
    """Return the run folder of a training that nothing interrupts; the tests of all processes share it."""

    def train(root: Path) -> None:
        write_training(root)
        finish(root, "whole", *LONG, *options)

    key = hashlib.sha256("\0".join(options).encode()).hexdigest()[:12]
    return shared_folder(factory, f"whole_training_{key}", train) / "runs" / "whole"


def kill_when(folder: Path, name: str, checkpoint: str, *options: str) -> Path:
    """Start a training and kill it, and all its processes, as soon as a checkpoint exists."""
    path = folder / "runs" / name / "checkpoints" / checkpoint
    process = Program(*words_of(folder, name, *options), env=ENVIRONMENT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "runs" / name / "result.json").exists()
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_same(
    one: Path, other: Path, keys: Sequence[str] = ("epoch", "step", "train/loss", "val/loss", "val/miou")
) -> None:
    assert_same_weights(one, other)
    rows = [read_csv(run / "metrics.csv") for run in (one, other)]
    for key in keys:
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]], key
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    assert results[0]["val"] == results[1]["val"]


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        ["--data.num_workers", "0"],
        ["--data.num_workers", "2", "--model.net.backbone", "resnet18"],
        ["--data.num_workers", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"],
    ],
    ids=["0 workers", "2 workers, resnet18", "2 workers, 2 processes"],
)
def test_a_killed_training_resumes_to_the_same_weights(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, options: list[str]
) -> None:
    """Killed once last.ckpt of the first epoch exists; a wrong order, crop or dropout mask would change the weights."""
    last = kill_when(folder, "killed", "last.ckpt", *LONG, *options)
    finish(folder, "killed", "--ckpt_path", str(last), *LONG, *options)
    assert_same(whole(tmp_path_factory, *options), folder / "runs" / "killed")


AVERAGES = {
    "ema": "[{class_path: deeplab_lightning.callbacks.EMAWithWarmup, init_args: {decay: 0.9}}]",
    "constant_ema": "[{class_path: EMAWeightAveraging, init_args: {decay: 0.9}}]",
    "swa": "[{class_path: deeplab_lightning.callbacks.EpochWeightAveraging, init_args: {start: 0.5}}]",
}


@pytest.mark.long
@pytest.mark.parametrize("name", AVERAGES)
def test_a_training_with_averaged_weights_resumes_to_the_same_average(folder: Path, name: str) -> None:
    """The average is what `best.ckpt` holds, and what is validated in and after the training."""
    options = ["--data.num_workers", "0", "--trainer.callbacks", AVERAGES[name]]
    finish(folder, "whole", *LONG, *options)
    last = kill_when(folder, "killed", "last.ckpt", *LONG, *options)
    finish(folder, "killed", "--ckpt_path", str(last), *LONG, *options)
    assert_same(folder / "runs" / "whole", folder / "runs" / "killed")
    checkpoints = folder / "runs" / "whole" / "checkpoints"
    last_state = torch.load(checkpoints / "last.ckpt", weights_only=True)
    trained, average = last_state["current_model_state"], last_state["state_dict"]
    assert not all(torch.equal(trained[key], average[key]) for key in average)
    run_program("validate", "--ckpt_path", str(checkpoints / "last.ckpt"), env=ENVIRONMENT, check=True)
    again = json.loads((folder / "runs" / "whole" / "result_validate.json").read_text())
    rows = read_csv(folder / "runs" / "whole" / "metrics.csv")
    assert again["val"]["miou"] == pytest.approx(float(rows[-1]["val/miou"]), abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(  # within the first epoch of 8 steps, at its end, within the second
    ("step", "workers"), [(3, "2"), (8, "0"), (8, "2"), (11, "0")]
)
def test_a_checkpoint_within_an_epoch_resumes_with_the_next_batch(folder: Path, step: int, workers: str) -> None:
    callback = (
        "[{class_path: PredictionPanels}, {class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: "
        f"{{dirpath: {folder / 'steps'}, filename: '{{step}}', every_n_train_steps: 1, save_top_k: -1}}}}]"
    )
    options = ["--trainer.max_epochs", "2", "--data.num_workers", workers]
    finish(folder, "whole", *options, "--trainer.callbacks", callback)
    finish(folder, "resumed", *options, "--ckpt_path", str(folder / "steps" / f"step={step}.ckpt"))
    assert_same_weights(folder / "runs" / "whole", folder / "runs" / "resumed")
    rows = [read_csv(folder / "runs" / name / "metrics.csv") for name in ("whole", "resumed")]
    assert rows[0][-1]["train/loss"] == rows[1][-1]["train/loss"]


@pytest.mark.long
@pytest.mark.parametrize("content", [b"", b"epoch,step\n", b"\xff\xff", b"x"])
def test_a_damaged_table_of_epochs_costs_no_epoch(folder: Path, content: bytes) -> None:
    """The rows before a resume were read from metrics.csv; the checkpoint holds them now."""
    finish(folder, "run", "--trainer.max_epochs", "2")
    table, result = (folder / "runs" / "run" / name for name in ("metrics.csv", "result.json"))
    rows, figures = read_csv(table), json.loads(result.read_text())
    table.write_bytes(content)
    finish(folder, "run", "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert json.loads(result.read_text())["val"] == figures["val"]
    finish(folder, "run", "--trainer.max_epochs", "3", "--ckpt_path", "last")
    assert read_csv(table)[:2] == rows


@pytest.mark.slow
def test_best_ckpt_resumes_to_the_same_weights(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It is written in the validation at an epoch's end, before the epoch counts as done."""
    best = kill_when(folder, "killed", "best.ckpt", *LONG)
    finish(folder, "killed", "--ckpt_path", str(best), *LONG)
    assert_same_weights(whole(tmp_path_factory), folder / "runs" / "killed")


class Terminate(L.Callback):
    """Send SIGTERM to the first process, in the second epoch."""

    def __init__(self, stage: str, batch: int) -> None:
        self.stage, self.batch = stage, batch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._terminate(trainer, "train", batch_idx)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._terminate(trainer, "validate", batch_idx)

    def _terminate(self, trainer: L.Trainer, stage: str, batch: int) -> None:
        if trainer.is_global_zero and (stage, batch, trainer.current_epoch) == (self.stage, self.batch, 1):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "batch", "options"),
    [
        ("train", 3, []),
        ("train", 7, ["--data.num_workers", "2"]),  # the last
        ("validate", 0, []),
        ("validate", 1, ["--data.num_workers", "2"]),  # the last
        ("train", 1, ["--trainer.devices", "2", "--trainer.strategy", "ddp"]),
    ],
)
def test_a_training_that_got_sigterm_goes_on_where_it_was(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, stage: str, batch: int, options: list[str]
) -> None:
    terminate = f"{{class_path: tests.test_resume.Terminate, init_args: {{stage: {stage}, batch: {batch}}}}}"
    words = words_of(folder, "stopped", *LONG, *options, "--trainer.callbacks", f"[{terminate}]")
    done = run_program(*words, env=ENVIRONMENT)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    last = folder / "runs" / "stopped" / "checkpoints" / "last.ckpt"
    steps = torch.load(last, weights_only=True)["global_step"]
    per_epoch = 4 if "ddp" in options else 8
    assert steps == per_epoch + (batch + 1 if stage == "train" else per_epoch)  # no step is lost
    finish(folder, "stopped", *LONG, *options, "--ckpt_path", str(last), "--trainer.callbacks", "[]")
    expected, stopped = whole(tmp_path_factory, *options), folder / "runs" / "stopped"
    assert_same(expected, stopped, ["epoch", "step", "val/loss", "val/miou"])
    losses = [[float(row["train/loss"]) for row in read_csv(run / "metrics.csv")] for run in (expected, stopped)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # of two processes, the sums round in another order
