"""Synchronised BatchNorm computes what BatchNorm computes, in all families of backbones."""

import copy
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from deeplab_lightning import DeepLabV3, SegmentationModule, TimmSyncBatchNorm
from deeplab_lightning.commands.lightning_cli import DeepLabCLI
from deeplab_lightning.kernels import speed_up
from deeplab_lightning.optimizers import parameter_groups
from tests.conftest import CLASSES, draw_noise_data
from tests.models.references import randomise, spread

SMALL = (
    *("resnet18", "resnet26t", "efficientnet-b0", "tf_efficientnet_lite0", "mobilenetv2_050", "mobilenetv3_small_050"),
    *("tv-mobilenet_v3_small", "convnext_atto", "regnetx_002", "regnety_002", "densenet121", "xception41", "dpn68"),
    *("ghostnet_050", "mobileone_s0", "gernet_s", "repvgg_a0", "cspresnet50", "mnasnet_050", "vgg11_bn"),
)


def module_of(backbone: str) -> SegmentationModule:
    torch.manual_seed(0)
    net = DeepLabV3(3, backbone=backbone, aspp_channels=8, pretrained=False)
    randomise(net)
    return SegmentationModule(net).eval()


def logits_of(module: nn.Module) -> Tensor:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return module(images)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sync")
    draw_noise_data(folder)
    dataset = {"root": str(folder), "images": "images", "masks": "masks", "classes": {"names": [*CLASSES]}}
    net = {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False}
    content = {
        "wandb": "disabled",
        "output_dir": str(folder / "runs"),
        "trainer": {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "sync_batchnorm": True},
        "model": {"net": {"class_path": "DeepLabV3", "init_args": net}},
        "data": {"dataset": {"class_path": "MaskFolderDataset", "init_args": dataset}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


@pytest.mark.long
@pytest.mark.parametrize("backbone", SMALL)
def test_the_logits_stay_and_revert_restores_the_layers(backbone: str) -> None:
    module = module_of(backbone)
    kinds, keys, logits = [type(m) for m in module.modules()], [*module.state_dict()], logits_of(module)
    assert spread(logits) > 0.01
    plugin = TimmSyncBatchNorm()
    synced = plugin.apply(copy.deepcopy(module))
    assert torch.equal(logits_of(synced), logits)
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert len(norms) == sum(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    assert [*synced.state_dict()] == keys
    reverted = plugin.revert(synced)
    assert [type(m) for m in reverted.modules()] == kinds
    assert torch.equal(logits_of(reverted), logits)


def test_the_command_line_keeps_activations(config: Path) -> None:
    trainer = DeepLabCLI("fit", ["-c", str(config)]).trainer
    module = module_of("tf_efficientnet_lite0")
    logits = logits_of(module)
    sync = trainer._accelerator_connector._layer_sync
    assert sync is not None
    assert torch.equal(logits_of(sync.apply(module)), logits)


def test_revert_keeps_what_was_trained() -> None:
    plugin, module = TimmSyncBatchNorm(), module_of("tf_efficientnet_lite0")
    synced = plugin.apply(module).double()  # as `precision: 64-true`, which replaces buffers
    for norm in synced.modules():
        if isinstance(norm, nn.SyncBatchNorm):
            norm.running_mean = torch.full_like(norm.running_mean, 3)  # type: ignore[arg-type]
            norm.weight.data.fill_(2)
    norms = [m for m in plugin.revert(synced).modules() if isinstance(m, BatchNormAct2d)]
    assert norms
    assert {(float(m.running_mean[0]), float(m.weight[0].detach()), m.weight.dtype) for m in norms} == {
        (3, 2, torch.float64)
    }


def test_synchronised_norms_are_norms_for_the_optimiser_and_the_kernels() -> None:
    def groups(module: SegmentationModule) -> dict[str, int]:
        found = parameter_groups(module.net, head_lr_multiplier=10, head_bias_lr_multiplier=20)
        return {group["name"]: len(group["params"]) for group in found}

    module = module_of("regnety_002")
    before, logits = groups(module), logits_of(module)
    synced = TimmSyncBatchNorm().apply(module)
    assert groups(module) == before
    speed_up(module.net)
    assert torch.allclose(logits_of(synced), logits, atol=1e-4)


def test_a_trainer_in_python_keeps_the_activations_too() -> None:
    """Lightning's own conversion would drop those of BatchNormAct2d."""
    trainer = L.Trainer(
        accelerator="cpu", strategy="ddp", devices=1, sync_batchnorm=True, logger=False, enable_checkpointing=False
    )
    module = module_of("efficientnet-b0")
    module.trainer = trainer
    module.setup("fit")
    assert isinstance(trainer.strategy._layer_sync, TimmSyncBatchNorm)  # type: ignore[attr-defined]
