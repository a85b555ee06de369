"""A training that is killed at ten random moments ends with the weights of one that was not. `make bench`."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from deeplab_lightning.runs import RunFolder
from tests.benchmarks.measure import write
from tests.processes import Program
from tests.test_resume import ENVIRONMENT, finish, weights, words_of, write_training

KILLS, SEED, MAX_WAIT = 10, 1, 1.0  # seconds, several epochs
OPTIONS = (
    *("--trainer.max_epochs", "100", "--data.num_workers", "2", "--trainer.enable_progress_bar", "false"),
    *("--model.net.backbone", "tf_efficientnet_lite0"),
)


def test_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_training(tmp_path)
    finish(tmp_path, "whole", *OPTIONS)
    run, moments, epochs = RunFolder(tmp_path / "runs" / "killed"), random.Random(SEED), []
    for _ in range(KILLS):
        written = _time(run.last)
        resume = ("--ckpt_path", "last") if written else ()
        process = Program(*words_of(tmp_path, "killed", *OPTIONS, *resume), env=ENVIRONMENT, start_new_session=True)
        while _time(run.last) == written:
            assert process.poll() is None, "the training ended before it could be killed"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, MAX_WAIT))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not run.result.exists(), "the training ended before it could be killed"
        epochs.append(torch.load(run.last, weights_only=True)["epoch"] + 1)  # a complete file at any time
    finish(tmp_path, "killed", *OPTIONS, "--ckpt_path", "last")
    whole, killed = (weights(tmp_path / "runs" / name) for name in ("whole", "killed"))
    different = [name for name in whole if not torch.equal(whole[name], killed[name])]
    with capsys.disabled():
        print(write("kills", {"kills": KILLS, "epochs_after_each": epochs, "different_tensors": different}))
    assert not different


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
