"""Tests that need a CUDA device: what the CPU computes, the GPU computes too."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from deeplab_lightning import DeepLabV3, SegmentationModule
from deeplab_lightning.crf import DenseCRF
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.resizing import resize, resized_argmax
from tests.test_module import TABLE, tiny_data, tiny_net

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def fit(folder: Path, module: SegmentationModule, **options: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        **options,
    )
    trainer.fit(module, datamodule=tiny_data(folder))
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_each_precision_trains_and_validates(mask_folder: Path, precision: str) -> None:
    module = SegmentationModule(tiny_net(), classes=TABLE)
    fit(mask_folder, module, precision=precision)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert int(module.last_matrix.sum()) > 0


@pytest.mark.parametrize("num_classes", [3, 150])
def test_labels_are_those_of_the_cpu(num_classes: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, num_classes, 17, 23)
    labels = resized_argmax(logits.cuda(), (129, 200)).cpu()
    assert (labels == resized_argmax(logits, (129, 200))).float().mean() > 0.9999


@pytest.mark.parametrize("band_rows", [None, 7])
@pytest.mark.parametrize("arguments", [{}, {"class_weights": [1.0, 0.0, 2.0], "label_smoothing": 0.1}])
def test_loss_and_gradient_are_those_of_the_cpu(band_rows: int | None, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mask = torch.randint(0, 3, (2, 64, 80))
    mask[:, :9] = 255
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        logits = torch.randn(2, 3, 9, 11).to(device).requires_grad_()
        loss = CrossEntropyLoss(band_rows=band_rows, **arguments).to(device)
        given = logits if band_rows else resize(logits, (64, 80))
        value = loss(given, mask.to(device))
        value.backward()
        assert logits.grad is not None
        found.append((value.detach().cpu(), logits.grad.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_a_training_step_does_not_wait_for_the_device() -> None:
    net = DeepLabV3(3, backbone="resnet18", aspp_channels=8, pretrained=False, auxiliary_weight=0.4)
    module = SegmentationModule(net, CrossEntropyLoss(class_weights=[1.0, 0.0, 2.0]), classes=TABLE).cuda()
    masks = torch.ones(2, 64, 64, dtype=torch.uint8, device="cuda")
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device="cuda")
    batch = Batch(images, masks, ["a", "b"], [(64, 64)] * 2, [4096] * 2)
    module.compute_loss(batch)[0].backward()  # cuDNN may wait while it chooses kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.compute_loss(batch)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_dense_crf_gives_the_labels_of_the_cpu() -> None:
    torch.manual_seed(0)
    images = F.interpolate(torch.rand(1, 3, 6, 8), (48, 64)).mul(255).to(torch.uint8)
    logits = torch.randn(1, 3, 48, 64)
    crf = DenseCRF()
    labels = [crf(images.to(device), logits.to(device)).cpu() for device in ("cpu", "cuda")]
    if labels[0].ndim == 4:
        labels = [probabilities.argmax(dim=1) for probabilities in labels]
    assert (labels[0] == labels[1]).float().mean() > 0.999


def test_prediction_of_a_large_image_takes_little_memory() -> None:
    module = SegmentationModule(DeepLabV3(150, backbone="resnet18", aspp_channels=8, pretrained=False)).eval().cuda()
    size = (2000, 3000)
    batch = Batch(torch.zeros(1, 3, *size, dtype=torch.uint8, device="cuda"), None, ["a"], [size])
    with torch.no_grad():
        module.predict_step([batch], 0)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        logits = module.coarse_logits(batch.image)
        network = torch.cuda.max_memory_allocated() - before
        del logits
        torch.cuda.reset_peak_memory_stats()
        module.predict_step([batch], 0)
    assert torch.cuda.max_memory_allocated() - before < max(network, 2 << 30) < 4 * 150 * size[0] * size[1]


def test_compiled_networks_train(mask_folder: Path) -> None:
    module = SegmentationModule(tiny_net(), classes=TABLE)
    module.net.compile()
    fit(mask_folder, module, limit_train_batches=2, limit_val_batches=1)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_ddp_on_one_device_synchronises_batchnorm(mask_folder: Path) -> None:
    from deeplab_lightning.sync_batchnorm import TimmSyncBatchNorm

    net = DeepLabV3(3, backbone="test_efficientnet", aspp_channels=8, pretrained=False)
    module = SegmentationModule(net, classes=TABLE)
    fit(mask_folder, module, strategy="ddp", plugins=[TimmSyncBatchNorm()])
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_deterministic_trainings_are_equal(mask_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    states = []
    for _ in range(2):
        L.seed_everything(0, verbose=False)
        module = SegmentationModule(tiny_net(), classes=TABLE)
        fit(mask_folder, module, deterministic="warn")
        states.append({name: value.cpu() for name, value in module.state_dict().items()})
    assert [name for name, value in states[0].items() if not torch.equal(value, states[1][name])] == []
