"""Tests that need a CUDA device."""

from pathlib import Path

import lightning as L
import pytest
import torch

from deeplab_lightning import SegmentationModule
from tests.test_module import TABLE, tiny_data, tiny_net

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_mixed_precision_trains_and_validates(mask_folder: Path, precision: str) -> None:
    module = SegmentationModule(tiny_net(), classes=TABLE)
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        logger=False,
        default_root_dir=mask_folder,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=tiny_data(mask_folder))
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert int(module.last_matrix.sum()) > 0
