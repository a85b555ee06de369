"""The record of a run tells what `best.ckpt` holds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplab_lightning import SegmentationModule
from deeplab_lightning.callbacks import RunRecord
from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint
from deeplab_lightning.metrics.per_image import PerImageConfusion
from tests.test_module import TABLE, tiny_data, tiny_net, trainer


class Scripted(SegmentationModule):
    """Claims one confusion matrix after the other: all right but for so many pixels."""

    def __init__(self, wrong: list[int]) -> None:
        super().__init__(tiny_net(), classes=TABLE)
        self.wrong = iter(wrong)

    def on_validation_epoch_end(self) -> None:
        wrong = next(self.wrong)
        matrix = torch.tensor([[100 - wrong, wrong, 0], [0, 100, 0], [0, 0, 100]])
        self.confusion["val"].reset()  # type: ignore[operator]
        self.confusion["val"].update(matrix[None])  # type: ignore[operator]
        self.per_image = [("a.png", matrix)]
        super().on_validation_epoch_end()


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
