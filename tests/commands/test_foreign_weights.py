"""Start a training from files of other projects, as people have them."""

from argparse import Namespace
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
import yaml

from tests.conftest import noise_config
from tests.processes import run_program


@pytest.mark.long
def test_a_file_with_options_and_another_dilation_starts_a_training_and_says_so(mask_folder: Path) -> None:
    """It ended in a traceback for the options, and without them in a start from other features without a word."""
    theirs = smp.DeepLabV3("tu-test_resnet", encoder_weights=None, classes=5)
    torch.save({"model": theirs.state_dict(), "args": Namespace(lr=0.01)}, mask_folder / "w.pth")
    net = {"aspp_channels": 256, "output_stride": 8, "weights": "w.pth"}
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(noise_config(mask_folder, trainer={}, net=net)))
    words = ("fit", "-c", "config.yaml", "--trainer.fast_dev_run", "true", "--model.net.dilation")
    note = "Note: the weights were trained with dilation 'torchvision', the network has 'smp'"
    assert note in run_program(*words, "smp", cwd=mask_folder, check=True).stdout
    done = run_program(*words, "torchvision", cwd=mask_folder, check=True)
    assert "Weights from w.pth: layout smp" in done.stdout
    assert "Note: the weights" not in done.stdout


@pytest.mark.long
def test_a_whole_module_is_refused_in_one_line(mask_folder: Path) -> None:
    torch.save(smp.DeepLabV3("tu-test_resnet", encoder_weights=None, classes=5), mask_folder / "w.pth")
    config = noise_config(mask_folder, trainer={}, net={"weights": "w.pth"})
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = run_program("fit", "-c", "config.yaml", cwd=mask_folder)
    assert done.returncode == 1
    assert "error: w.pth holds more than tensors by name, which could run code" in done.stderr
    assert "Traceback" not in done.stderr
