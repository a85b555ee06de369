"""The record of a run belongs to the epoch of `best.ckpt`."""

import json
import re
import sys
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from deeplab_lightning import SegmentationModule
from deeplab_lightning.callbacks import RunRecord
from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint
from deeplab_lightning.cli import main
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import RunFolder
from tests.conftest import noise_config, write_image
from tests.test_module import TABLE, tiny_data, tiny_net, trainer


class Scripted(SegmentationModule):
    """Report given confusion matrices, one per validation: so many pixels are wrong, all others right."""

    def __init__(self, wrong: list[int]) -> None:
        super().__init__(tiny_net(), classes=TABLE)
        self.wrong = iter(wrong)

    def on_validation_epoch_end(self) -> None:
        wrong = next(self.wrong)
        matrix = torch.tensor([[100 - wrong, wrong, 0], [0, 100, 0], [0, 0, 100]])
        self.confusion["val"].reset()  # type: ignore[operator]
        self.confusion["val"].update(matrix[None])  # type: ignore[operator]
        self.per_image.clear()
        self.per_image.add(["a.png"], matrix[None])
        super().on_validation_epoch_end()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [[30, 5, 20, 10, 40, 50], [30, 20, 10, 8, 5, 5]])
def test_the_record_is_of_the_best_of_several_validations_an_epoch(
    mask_folder: Path, tmp_path: Path, wrong: list[int]
) -> None:
    module = Scripted(wrong)
    best = RunCheckpoint(dirpath=str(tmp_path / "checkpoints"), filename="best", monitor="val/miou", mode="max")
    fit = trainer(
        tmp_path, max_epochs=2, val_check_interval=1 / 3, num_sanity_val_steps=0, callbacks=[RunRecord(), best]
    )
    fit.fit(module, datamodule=tiny_data(mask_folder))
    assert best.best_model_score is not None
    assert next(module.wrong, None) is None  # three validations an epoch
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["val"]["miou"] == pytest.approx(float(best.best_model_score), abs=1e-6)
    expected = [[95, 5, 0], [0, 100, 0], [0, 0, 100]]
    counts = np.loadtxt(tmp_path / "confusion_matrix.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3))
    assert counts.tolist() == expected
    assert PerImageConfusion.read(tmp_path / "image_matrices.npz").total().tolist() == expected
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3  # a row per epoch


@pytest.mark.long
@pytest.mark.parametrize("car", ["bottle, glass", "two\nlines", '# "Behälter"'])
def test_a_training_ends_with_its_record_whatever_a_class_is_called(
    mask_folder: Path, tmp_path: Path, car: str
) -> None:
    names = ["sky", "road", car]
    classes = {"names": names, "ignore_ids": [11]}
    dataset = {"root": str(mask_folder), "images": "images", "masks": "masks", "classes": classes}
    net = {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False}
    transforms = "deeplab_lightning.data.transforms.TrainTransforms"
    config = {
        "wandb": "disabled",
        "output_dir": str(tmp_path / "runs"),
        "name": "run",
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1, "enable_progress_bar": False},
        "model": {"net": {"class_path": "DeepLabV3", "init_args": net}},
        "data": {
            "dataset": {"class_path": "MaskFolderDataset", "init_args": dataset},
            "n_folds": 2,
            "batch_size": 2,
            "num_workers": 0,
            "train_transforms": {"class_path": transforms, "init_args": {"crop_size": 32}},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(tmp_path / "config.yaml")])
    folder = RunFolder(tmp_path / "runs" / "run")
    result = folder.read_result()
    assert result is not None
    assert list(result["val"]["iou"]) == names
    counts = folder.read_confusion()
    assert counts.shape == (3, 3)
    assert counts[2].sum() > 0
    assert folder.confusion_figure.is_file()
    images = folder.read_images()
    assert images is not None
    assert images.total().tolist() == counts.tolist()


@pytest.mark.slow
def test_a_profiler_does_not_cost_the_result(mask_folder: Path) -> None:
    """Its hooks cannot be copied, and the training ended with a traceback instead of its result."""
    config = noise_config(mask_folder, trainer={"max_epochs": 1, "limit_train_batches": 1, "profiler": "pytorch"})
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(config))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        main(["fit", "-c", str(mask_folder / "config.yaml"), "--name", "profiled"])
    assert any("the multiply-adds cannot be counted" in str(warning.message) for warning in found)
    result = RunFolder(mask_folder / "runs" / "profiled").read_result()
    assert result is not None
    assert result["val"]["miou"] is not None
    assert result["cost"]["mega_parameters"] > 0.3
    assert result["cost"]["giga_macs"] is None


@pytest.mark.long
def test_a_result_says_where_it_comes_from(mask_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two results of one name could not be told apart: neither data nor program were written down."""

    def trained(name: str) -> dict[str, Any]:
        words = ["fit", "-c", str(mask_folder / "config.yaml"), "--name", name]
        monkeypatch.setattr(sys, "argv", ["deeplab", *words])
        main(words)
        result = RunFolder(mask_folder / "runs" / name).read_result()
        assert result is not None
        return result

    trainer = {"max_epochs": 1, "limit_train_batches": 1, "num_sanity_val_steps": 0}
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(noise_config(mask_folder, trainer=trainer)))
    first = trained("a")
    assert first["command"].startswith("deeplab fit -c ")
    assert datetime.now(UTC) - datetime.fromisoformat(first["finished"]) < timedelta(minutes=10)
    assert first["commit"] is None or re.fullmatch(r"[0-9a-f]{12,}\+?", first["commit"])
    assert trained("b")["data_digest"] == first["data_digest"]
    write_image(mask_folder / "images" / "00.png", seed=99)
    assert trained("c")["data_digest"] != first["data_digest"]
