"""The door: closed, every path is stock PyTorch; open, subclasses, hooks, `compile` and other losses keep working."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from deeplab_lightning import DeepLabV3, SegmentationModule, kernels
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.kernels import Door, open_door
from deeplab_lightning.kernels.depthwise import DepthwiseConv2d, DepthwiseConv2dSame
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.models.deeplab import TrainingLogits
from tests.conftest import draw_noise_data
from tests.test_module import TABLE, tiny_data, trainer

CPU, KERNELS = torch.device("cpu"), (DepthwiseConv2d, DepthwiseConv2dSame)


def depthwise_net() -> DeepLabV3:
    torch.manual_seed(0)
    return DeepLabV3(3, backbone="test_efficientnet", output_stride=8, aspp_channels=8, pretrained=False)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(0, 3, (2, 33, 47), generator=generator), ["a", "b"], [(33, 47)] * 2)


def opened(module: SegmentationModule) -> SegmentationModule:
    module.door = open_door(module.net, CPU, is_wanted=True)
    return module


class Recorder(L.Callback):
    """Records the depthwise layers of a training, and whether its door was open."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.kinds = {type(m) for m in pl_module.modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
        assert isinstance(pl_module, SegmentationModule)
        self.is_open = pl_module.door.is_open


def trained(folder: Path, *, cpu_kernels: bool) -> tuple[Recorder, SegmentationModule, float]:
    net = depthwise_net()
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    module, recorder = SegmentationModule(net, classes=TABLE, cpu_kernels=cpu_kernels), Recorder()
    fit = trainer(folder, max_epochs=1, callbacks=[recorder], num_sanity_val_steps=0, enable_checkpointing=False)
    fit.fit(module, datamodule=tiny_data(folder))
    return recorder, module, float(fit.callback_metrics["val/loss"])


def test_the_same_training_with_the_door_open_and_closed(tmp_path: Path) -> None:
    """`cpu_kernels=False` closes it: plain layers, logits at full size, and the same numbers to rounding."""
    draw_noise_data(tmp_path)
    plain, stock, stock_loss = trained(tmp_path, cpu_kernels=False)
    quick, ours, own_loss = trained(tmp_path, cpu_kernels=True)
    assert (plain.is_open, quick.is_open) == (False, True)
    assert not plain.kinds & set(KERNELS)
    assert quick.kinds <= set(KERNELS)
    assert own_loss == pytest.approx(stock_loss, rel=1e-4)
    for (name, a), b in zip(stock.net.named_parameters(), ours.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.long
def test_the_variable_closes_the_door_in_a_process(tmp_path: Path) -> None:
    code = """
import torch
from deeplab_lightning import DeepLabV3, kernels
net = DeepLabV3(3, backbone="test_efficientnet", pretrained=False)
door = kernels.open_door(net, torch.device("cpu"), is_wanted=True)
kernels.speed_up(net)
print(door.is_open, sorted({type(m).__name__ for m in net.modules() if getattr(m, "groups", 1) > 1}))
"""
    found = {}
    for value in ("1", "0"):
        environment = {**os.environ, kernels.SWITCH: value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found[value] = done.stdout.split("\n")[-2]
    assert found["0"] == "False ['Conv2d']"
    assert found["1"].startswith("True ['DepthwiseConv2d'")


def test_a_closed_door_gives_full_size_logits_and_their_argmax() -> None:
    module = SegmentationModule(depthwise_net()).eval()
    logits = Door().logits(module, batch().image, module.loss)
    assert torch.equal(logits, module(batch().image))
    assert torch.equal(Door().labels(logits, (33, 47)).long(), logits.argmax(dim=1))


def test_losses_of_other_libraries_get_full_size_logits() -> None:
    module = opened(SegmentationModule(depthwise_net(), smp.losses.DiceLoss("multiclass", ignore_index=255)).eval())
    _, logits = module.compute_loss(batch())
    assert logits.shape == (2, 3, 33, 47)
    assert opened(SegmentationModule(depthwise_net())).eval().compute_loss(batch())[1].shape != (2, 3, 33, 47)


class OnlyForward(CrossEntropyLoss):
    """Overrides `forward` and inherits `takes_coarse_logits`, which does not hold for it."""

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        assert logits.shape[-2:] == mask.shape[-2:]
        return logits.square().mean()


class OwnForward(DeepLabV3):
    def forward(self, images: Tensor) -> Tensor | TrainingLogits:
        output = super().forward(images)
        assert isinstance(output, Tensor)
        return output + 5


class OwnCoarse(DeepLabV3):
    def coarse_logits(self, images: Tensor) -> Tensor | TrainingLogits:
        output = super().coarse_logits(images)
        assert isinstance(output, Tensor)
        return 2 * output


class OwnModule(SegmentationModule):
    def forward(self, images: Tensor) -> Any:
        output = super().forward(images)
        assert isinstance(output, Tensor)
        return output[:, [2, 1, 0]]


def subclassed(kind: type[DeepLabV3]) -> DeepLabV3:
    torch.manual_seed(0)
    return kind(3, backbone="test_efficientnet", aspp_channels=8, pretrained=False)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SegmentationModule(depthwise_net(), OnlyForward()),
        lambda: SegmentationModule(subclassed(OwnForward)),
        lambda: SegmentationModule(subclassed(OwnCoarse)),
        lambda: OwnModule(depthwise_net()),
    ],
)
def test_subclasses_compute_the_same_with_the_door_open(build: Any) -> None:
    plain, quick = build().eval(), opened(build().eval())
    loss, _ = plain.compute_loss(batch())
    own_loss, _ = quick.compute_loss(batch())
    torch.testing.assert_close(own_loss, loss, rtol=1e-4, atol=1e-5)
    for (_, expected), (_, found) in zip(
        plain.predict_step([batch()], 0), quick.predict_step([batch()], 0), strict=True
    ):
        assert (expected == found).float().mean() > 0.999


def test_hooks_on_the_network_are_called_and_change_the_logits() -> None:
    module = opened(SegmentationModule(depthwise_net()).eval())
    before, _ = module.compute_loss(batch())
    shapes = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        shapes.append(tuple(output.shape))
        return 3 * output

    handle = module.net.register_forward_hook(hook)
    changed, _ = module.compute_loss(batch())
    handle.remove()
    assert shapes == [(2, 3, 33, 47)]
    assert not torch.allclose(changed, before)
    assert torch.allclose(module.compute_loss(batch())[0], before)


@pytest.mark.long
def test_a_compiled_network_is_the_one_that_runs() -> None:
    module = opened(SegmentationModule(depthwise_net()).eval())
    before, _ = module.compute_loss(batch())
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    module.net.compile(backend=backend)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Dynamo detected a call to a `functools.lru_cache`")
        after, logits = module.compute_loss(batch())
    assert compiled
    assert logits.shape == (2, 3, 33, 47)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_names_of_weights_stay() -> None:
    net = depthwise_net()
    names = list(net.state_dict())
    kernels.speed_up(net)
    kernels.speed_up(net)  # a second time changes nothing
    assert list(net.state_dict()) == names
    assert net(torch.zeros(1, 3, 32, 32)) is not None
