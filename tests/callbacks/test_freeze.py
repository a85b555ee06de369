"""Freeze stages in the real command."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deeplab_lightning.models.backbone import build_backbone
from deeplab_lightning.models.stages import stage_parameters
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

OVERLAYS = Path(__file__).parents[2] / "configs" / "trainer"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images and `config.yaml`."""
    root = tmp_path_factory.mktemp("freeze")
    draw_noise_data(root)
    trainer = {"max_epochs": 2, "num_sanity_val_steps": 0}
    (root / "config.yaml").write_text(yaml.safe_dump(noise_config(root, trainer=trainer)))
    return root


def trained(folder: Path, name: str, *words: str) -> State:
    """Train, and return the weights of last.ckpt."""
    run_program("fit", "-c", str(folder / "config.yaml"), "--name", name, *words, check=True)
    checkpoint = torch.load(folder / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
    state: State = checkpoint["state_dict"]
    return state


def changed(one: State, other: State) -> set[str]:
    return {name for name in one if name.startswith("net.") and not torch.equal(one[name], other[name])}


def freeze(**arguments: Any) -> tuple[str, str]:
    return "--trainer.callbacks", str([{"class_path": "FreezeBackbone", "init_args": arguments}])


@pytest.mark.long
def test_frozen_stages_keep_weights_and_statistics(folder: Path) -> None:
    start = trained(folder, "start", "--trainer.max_epochs", "1", *freeze())
    whole = trained(folder, "whole", *freeze())
    names = changed(start, whole)
    assert names
    assert not [name for name in names if name.startswith("net.backbone.")]
    first = changed(start, trained(folder, "first", *freeze(stages=2)))
    assert [name for name in first if name.startswith("net.backbone.net.layer4")]
    assert [name for name in first if name.startswith("net.backbone.net.layer2")]
    assert not [name for name in first if name.startswith(("net.backbone.net.conv1", "net.backbone.net.layer1"))]


@pytest.mark.long
def test_thawed_stages_train_and_norms_alone_can_be_frozen(folder: Path) -> None:
    one = trained(folder, "one", "--trainer.max_epochs", "1", *freeze(thaw_epoch=1))
    two = trained(folder, "two", *freeze(thaw_epoch=1))
    names = changed(one, two)
    assert "net.backbone.net.layer1.0.conv1.weight" in names
    assert "net.backbone.net.layer1.0.bn1.running_mean" in names
    norms = trained(folder, "norms", *freeze(train_weights=True))
    assert "net.backbone.net.layer1.0.conv1.weight" in changed(one, norms)
    assert not [name for name in changed(one, norms) if name.startswith("net.backbone.") and "running" in name]


@pytest.mark.long
def test_a_training_with_a_thaw_resumes_to_the_same_weights(folder: Path) -> None:
    whole = trained(folder, "uncut", "--trainer.max_epochs", "3", *freeze(thaw_epoch=1))
    stop = {"class_path": "tests.test_resume.Terminate", "init_args": {"stage": "train", "batch": 1}}
    frozen = {"class_path": "FreezeBackbone", "init_args": {"thaw_epoch": 1}}
    words = ("-c", str(folder / "config.yaml"), "--name", "cut", "--trainer.max_epochs", "3")
    cut = run_program("fit", *words, "--trainer.callbacks", str([frozen, stop]))
    assert cut.returncode == 128 + signal.SIGTERM, cut.stderr
    last = folder / "runs" / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    run_program("fit", "--ckpt_path", str(last), "--trainer.callbacks", str([frozen]), check=True)
    resumed = torch.load(last, weights_only=True)["state_dict"]
    assert not changed(whole, resumed)


@pytest.mark.long
@pytest.mark.parametrize("name", ["freeze", "ema", "swa", "early_stopping"])
def test_the_overlays_add_their_callback_to_those_of_the_base(folder: Path, name: str) -> None:
    (folder / "panels.yaml").write_text(
        yaml.safe_dump({"trainer": {"callbacks": [{"class_path": "PredictionPanels"}]}})
    )
    words = ("-c", str(folder / "panels.yaml"), "-c", str(OVERLAYS / f"{name}.yaml"), "--trainer.max_epochs", "1")
    trained(folder, name, *words)
    config = yaml.safe_load((folder / "runs" / name / "config.yaml").read_text())
    assert len(config["trainer"]["callbacks"]) == 2


@pytest.mark.long
def test_two_averages_of_the_weights_are_refused(folder: Path) -> None:
    """Each swapped the other's average for the weights that train."""
    overlays = ("-c", str(OVERLAYS / "ema.yaml"), "-c", str(OVERLAYS / "swa.yaml"))
    done = run_program("fit", "-c", str(folder / "config.yaml"), *overlays)
    assert done.returncode == 1
    assert "EMAWithWarmup and EpochWeightAveraging each average the weights" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_stages_that_are_not_there_are_named(folder: Path) -> None:
    done = run_program("fit", "-c", str(folder / "config.yaml"), *freeze(stages=9))
    assert done.returncode == 1
    assert "stages must be at most 5, those of the backbone, got 9." in " ".join(done.stderr.split())


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenetv3_small_100", "mobilenet_v2", "tv-mobilenet_v2"])
def test_stages_hold_more_parameters_one_after_the_other(name: str) -> None:
    backbone = build_backbone(name, output_stride=16, pretrained=False)
    counts = [len(stage_parameters(backbone, stage)) for stage in range(1, len(backbone.channels) + 1)]
    assert counts[0] > 0
    assert counts == sorted(set(counts))
    assert counts[-1] <= len(stage_parameters(backbone, None))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in backbone.parameters())
