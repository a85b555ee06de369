"""What Windows lacks is missed by no command but those that say so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import noise_config

WITHOUT = """
import os, signal, sys
import torch, lightning, torchmetrics, wandb, multiprocessing.util, subprocess, timm, psutil  # with own ways
for name in ("fcntl", "resource", "grp", "pwd", "termios"):
    sys.modules[name] = None  # an import fails
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
for name in ("killpg", "setsid", "getpgid", "sysconf", "geteuid"):
    delattr(os, name)
from lightning.pytorch.trainer.connectors import signal_connector
signal_connector._IS_WINDOWS = True
signal.valid_signals = lambda: {signal.SIGINT, signal.SIGTERM}
from deeplab_lightning.__main__ import run
for words in WORDS:
    sys.argv = ["deeplab", *words]
    try:
        run()
    except SystemExit as end:
        print("status", end.code)
"""


@pytest.mark.long
def test_training_and_evaluation_need_nothing_that_windows_lacks(mask_folder: Path) -> None:
    config = noise_config(mask_folder, trainer={"max_epochs": 1, "num_sanity_val_steps": 0}, data={"cache": "ram"})
    (mask_folder / "c.yaml").write_text(yaml.safe_dump(config))
    run = mask_folder / "runs" / "run"
    checkpoint = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    words = [
        ["fit", "-c", str(mask_folder / "c.yaml"), "--name", "run"],
        ["validate", *checkpoint],
        ["predict", *checkpoint, "--images", str(mask_folder / "images")],
        ["split", "-c", str(mask_folder / "c.yaml"), "--output", str(mask_folder / "split")],
        ["report", str(run)],
        ["kfold", "-c", str(mask_folder / "c.yaml"), "--name", "cv"],
    ]
    code = WITHOUT.replace("WORDS", repr(words))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / "result.json").is_file()
    assert (run / "result_validate.json").is_file()
    assert len([*(run / "predictions").rglob("*.png")]) == 10
    assert done.stdout.count("status 1") == 1
    assert done.stderr.count("error: several trainings at once need Linux or macOS; on Windows, use WSL") == 1
    assert "Traceback" not in done.stderr
