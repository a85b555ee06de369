"""Train with the losses of the shipped overlays by the real command."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning import CrossEntropyLoss, DeepLabV3, DiceLoss, SegmentationDataModule, SegmentationModule, SumLoss
from deeplab_lightning.data import ClassTable, MaskFolderDataset, TrainTransforms
from deeplab_lightning.runs import RunFolder
from tests.conftest import CLASSES, draw_noise_data, noise_config
from tests.processes import run_program

OVERLAYS = sorted((Path(__file__).parents[2] / "configs" / "loss").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images and `config.yaml` of a training of one epoch."""
    root = tmp_path_factory.mktemp("losses")
    draw_noise_data(root)
    (root / "config.yaml").write_text(
        yaml.safe_dump(noise_config(root, trainer={"max_epochs": 1, "num_sanity_val_steps": 0}))
    )
    return root


@pytest.mark.long
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_trains_and_evaluates(folder: Path, overlay: Path) -> None:
    run_program("fit", "-c", str(folder / "config.yaml"), "-c", str(overlay), "--name", overlay.stem, check=True)
    run = RunFolder(folder / "runs" / overlay.stem)
    result = json.loads(run.result.read_text())
    checked = run_program("validate", "--ckpt_path", str(run.last), "--wandb", "disabled")
    assert checked.returncode == 0, checked.stderr
    again = json.loads((run.path / "result_validate.json").read_text())
    assert again["val"]["loss"] == pytest.approx(result["val"]["loss"], rel=1e-5)  # so the weights are the same


@pytest.mark.long
@pytest.mark.parametrize("is_sum", [False, True], ids=["alone", "in a sum"])
def test_losses_of_other_packages_train_in_bf16(folder: Path, is_sum: bool) -> None:
    alone = ["--model.loss", "segmentation_models_pytorch.losses.LovaszLoss", "--model.loss.mode", "multiclass"]
    alone += ["--model.loss.ignore_index", "255"]
    words = ["-c", str(OVERLAYS[0].with_name("ce_lovasz.yaml"))] if is_sum else alone
    words += ["--trainer.precision", "bf16-mixed", "--name", f"bf16-{is_sum}"]
    done = run_program("fit", "-c", str(folder / "config.yaml"), *words)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long
def test_averaged_weights_go_with_class_weights(folder: Path) -> None:
    """The rule's weights were a buffer that the average's copy had not: sizes differed at the first step."""
    overlays = [OVERLAYS[0].parents[1] / "trainer" / "ema.yaml", OVERLAYS[0].with_name("class_weights.yaml")]
    words = [word for path in overlays for word in ("-c", str(path))]
    run_program("fit", "-c", str(folder / "config.yaml"), *words, "--name", "averaged", check=True)
    run = RunFolder(folder / "runs" / "averaged")
    result = json.loads(run.result.read_text())
    run_program("validate", "--ckpt_path", str(run.best), "--wandb", "disabled", check=True)
    assert json.loads((run.path / "result_validate.json").read_text())["val"]["miou"] == result["val"]["miou"]


def measured(root: Path) -> list[float]:
    """Return the balanced weights of the images that fold 0 trains on, from the mask files alone."""
    import csv

    [run] = (root / "runs").glob("weighted*")
    with (run / "folds.csv").open() as file:
        trained = [row["image"] for row in csv.DictReader(file) if row["fold"] != "0"]
    assert 0 < len(trained) < 10
    masks = [np.asarray(Image.open(root / "masks" / name)) for name in trained]
    counts = np.array([sum(int((mask == c).sum()) for mask in masks) for c in range(3)])
    inverse = 1 / counts
    return (inverse / inverse.mean()).tolist()


@pytest.mark.long
def test_weights_are_of_the_training_fold_alone_and_in_the_checkpoint(folder: Path) -> None:
    words = ("--model.loss.init_args.class_weights", "balanced", "--name", "weighted")
    loss = ("--model.loss", "deeplab_lightning.CrossEntropyLoss")
    done = run_program("fit", "-c", str(folder / "config.yaml"), *loss, *words, check=True)
    expected = measured(folder)
    line = f"Class weights (balanced, of the training images): sky {expected[0]:.3g}, road {expected[1]:.3g}, "
    assert line in done.stdout + done.stderr
    last = RunFolder(folder / "runs" / "weighted").last
    assert np.allclose(torch.load(last, weights_only=True)["class_weights"][""], expected, rtol=1e-5)
    resumed = SegmentationModule.load_from_checkpoint(last).loss
    assert isinstance(resumed, CrossEntropyLoss)
    assert resumed.class_weights is not None
    assert np.allclose(resumed.class_weights.numpy(), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_sum_of_losses_from_python_is_in_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    loss = SumLoss([CrossEntropyLoss(class_weights="inverse_sqrt"), DiceLoss()], weights=[1, 2])
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
    table = ClassTable(list(CLASSES), ignore_ids=[11])
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=table)
    arguments: dict[str, Any] = {"train_transforms": TrainTransforms(32), "num_workers": 0, "n_folds": 2}
    data = SegmentationDataModule(dataset, batch_size=2, **arguments)
    options: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(**options, enable_progress_bar=False, enable_model_summary=False)
    module = SegmentationModule(net, loss, classes=table)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt")
    logits, mask = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
    assert torch.equal(again.loss(logits, mask), loss(logits, mask))


@pytest.mark.slow
def test_a_loss_inside_a_sum_that_ignores_nothing_is_refused(folder: Path) -> None:
    overlay = {
        "class_path": "deeplab_lightning.SumLoss",
        "init_args": {
            "losses": [
                {
                    "class_path": "segmentation_models_pytorch.losses.LovaszLoss",
                    "init_args": {"mode": "multiclass"},
                }
            ]
        },
    }
    (folder / "wrong.yaml").write_text(yaml.safe_dump({"model": {"loss": overlay}}))
    done = run_program("fit", "-c", str(folder / "config.yaml"), "-c", str(folder / "wrong.yaml"))
    assert done.returncode == 1
    assert "the loss ignores None, but void is 255: set ignore_index." in " ".join(done.stderr.split())


@pytest.mark.slow
def test_an_unknown_rule_is_one_line(folder: Path) -> None:
    loss = ("--model.loss", "deeplab_lightning.CrossEntropyLoss", "--model.loss.init_args.class_weights", "fair")
    done = run_program("fit", "-c", str(folder / "config.yaml"), *loss)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "fair" in done.stderr
