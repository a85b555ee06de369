"""Networks, training steps and validation against torchvision's and smp's same work. `make bench`.

Every network has random weights; each of theirs is measured in fp32 and bf16, contiguous and channels-last, and
compared by its fastest. Beside the ratio stands the share of the machine's own matmul rate that is reached: where
the stock convolutions reach it, as on CPUs without a matrix unit, no formulation can be much faster.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from deeplab_lightning.models.evaluation import EvaluationCopies
from lightning import Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassConfusionMatrix

from deeplab_lightning import DeepLabV2, DeepLabV3, DeepLabV3Plus, SegmentationDataModule, SegmentationModule
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.kernels.depthwise import DepthwiseConv2d
from deeplab_lightning.kernels.taps import convolve_by_taps, is_faster_by_taps
from deeplab_lightning.kernels.tiles import tiled_labels
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.models.aspp import DEFAULT_ATROUS_RATES
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.resizing import resize
from tests.benchmarks.measure import alternating, machine, write

NUM_CLASSES, REPEATS = 21, 3
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": False, "bf16": True}
Call = Callable[[], object]
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


def placed(net: nn.Module, images: Tensor, layout: str) -> Tensor:
    """Bring network and pictures to a layout."""
    net.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    return images.contiguous(memory_format=LAYOUTS[layout])


def inference(name: str, net: nn.Module, images: Tensor) -> dict[str, Call]:
    """A call per precision and layout."""
    net.eval()

    def call(layout: str, is_half: bool) -> object:
        given = placed(net, images, layout)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            return net(given)

    return {
        f"{name} {dtype} {layout}": lambda layout=layout, is_half=is_half: call(layout, is_half)  # type: ignore[misc]
        for layout in LAYOUTS
        for dtype, is_half in DTYPES.items()
    }


def training(name: str, net: nn.Module, images: Tensor, loss: Callable[[Any, Tensor], Tensor]) -> dict[str, Call]:
    """A step without the optimiser, whose work is the same for all, per precision and layout."""
    net.train()
    mask = torch.randint(0, NUM_CLASSES, (len(images), *images.shape[2:]))

    def call(layout: str, is_half: bool) -> None:
        given = placed(net, images, layout)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            value = loss(net.scores(given) if isinstance(net, DeepLab) else net(given), mask)  # as the module does
        value.backward()

    return {
        f"{name} {dtype} {layout}": lambda layout=layout, is_half=is_half: call(layout, is_half)  # type: ignore[misc]
        for layout in LAYOUTS
        for dtype, is_half in DTYPES.items()
    }


def report(
    title: str,
    calls: dict[str, Call],
    capsys: pytest.CaptureFixture[str],
    *,
    wanted: float,
    gflops: float | None = None,
    repeats: int = REPEATS,
    least: float = 0.9,
) -> None:
    """Measure; print and write their fastest over our fastest: at least `wanted` with a matrix unit, else `least`."""
    seconds = alternating(calls, repeats=repeats)
    best = {is_own: min(v for k, v in seconds.items() if k.startswith("ours") == is_own) for is_own in (True, False)}
    ratio, here = best[False] / best[True], machine()
    figures: dict[str, Any] = {"seconds": seconds, "times_the_fastest_peer": ratio, "wanted_with_matrix_unit": wanted}
    if gflops is not None:
        figures["share_of_peak"] = gflops / 1000 / best[True] / max(here["peak_tflops"].values())
    with capsys.disabled():
        print(write(title, figures))
    assert ratio >= (wanted if "amx_bf16" in here["matrix_instructions"] else least)


def forward_gflops(net: nn.Module, images: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(images)
    return counter.get_total_flops() / 1e9


def peers(output_stride: int) -> dict[str, nn.Module]:
    nets: dict[str, nn.Module] = {
        "smp": smp.DeepLabV3(
            "resnet50",
            encoder_weights=None,
            classes=NUM_CLASSES,
            encoder_output_stride=output_stride,  # type: ignore[arg-type]
            decoder_atrous_rates=DEFAULT_ATROUS_RATES[output_stride],  # its own default is that of stride 8
        ),
    }
    if output_stride == 8:
        nets["torchvision"] = torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES
        )
    return nets


@pytest.mark.parametrize(("output_stride", "wanted"), [(8, 3.0), (16, 1.6)])
def test_inference_resnet50(output_stride: int, wanted: float, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randn(2, 3, 384, 384)
    net = DeepLabV3(NUM_CLASSES, backbone="resnet50", output_stride=output_stride, pretrained=False)
    gflops = forward_gflops(net, images)
    evaluated = EvaluationCopies(net).make(net)
    assert evaluated is not None
    calls = inference("ours", evaluated, images)
    for name, peer in peers(output_stride).items():
        calls |= inference(name, peer, images)
    report(f"inference_resnet50_stride_{output_stride}", calls, capsys, wanted=wanted, gflops=gflops)


@pytest.mark.parametrize(("output_stride", "wanted"), [(8, 1.7), (16, 1.2)])
def test_training_step_resnet50(output_stride: int, wanted: float, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randn(2, 3, 384, 384)
    net = DeepLabV3(NUM_CLASSES, backbone="resnet50", output_stride=output_stride, pretrained=False)
    gflops = 3 * forward_gflops(net, images)
    calls = training("ours", net, images, CrossEntropyLoss())
    for name, peer in peers(output_stride).items():
        calls |= training(name, peer, images, lambda y, m: F.cross_entropy(y["out"] if isinstance(y, dict) else y, m))
    title = f"training_step_resnet50_stride_{output_stride}"
    report(title, calls, capsys, wanted=wanted, gflops=gflops, repeats=2)


def test_training_step_v3plus_lite0(capsys: pytest.CaptureFixture[str]) -> None:
    """Against smp in a process of its own, see `other_process`."""
    net = DeepLabV3Plus(NUM_CLASSES, backbone="tf_efficientnet_lite0", separable=True, pretrained=False)
    calls = training("ours", net, torch.randn(4, 3, 320, 320), CrossEntropyLoss())
    with other_process() as other:
        calls["smp as shipped"] = lambda: other.submit(step_as_shipped).result()
        report("training_step_v3plus_lite0", calls, capsys, wanted=4, repeats=5)


def step_as_shipped() -> None:
    shipped()()


@cache
def shipped() -> Call:
    net = smp.DeepLabV3Plus("tu-tf_efficientnet_lite0", encoder_weights=None, classes=NUM_CLASSES)
    return training("smp", net, torch.randn(4, 3, 320, 320), F.cross_entropy)["smp fp32 contiguous"]


@contextmanager
def other_process() -> Iterator[ProcessPoolExecutor]:
    """One with the memory pages that torch takes of itself, where this one has those that `deeplab` sets."""
    ours = os.environ.pop(HUGE_PAGES, None)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process
    if ours is not None:
        os.environ[HUGE_PAGES] = ours


def test_v2_vgg16(capsys: pytest.CaptureFixture[str]) -> None:
    """Against its plain formulation in fp32: four whole branches, contiguous."""
    net = DeepLabV2(NUM_CLASSES, pretrained=False)
    images, head = torch.randn(1, 3, 321, 321), net.head
    gflops = forward_gflops(net, images)

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            features = net.backbone(x)[-1]
            scores = [head.heads[0](branch(features)) for branch in head.branches]  # type: ignore[operator, index, union-attr]
            return resize(torch.stack(scores).sum(dim=0), (321, 321))

    plain = Plain()
    plain.net = net
    calls = inference("ours", net, images)
    calls["plain"] = inference("plain", plain, images)["plain fp32 contiguous"]
    report("inference_deeplabv2_vgg16", calls, capsys, wanted=4, gflops=gflops)
    calls = training("ours", net, images, CrossEntropyLoss())
    calls["plain"] = training("plain", plain, images, lambda y, m: F.cross_entropy(y, m))["plain fp32 contiguous"]
    report("training_step_deeplabv2_vgg16", calls, capsys, wanted=2, gflops=3 * gflops, repeats=2)


@pytest.mark.parametrize("dilation", [1, 6, 12, 24, 36])
def test_taps_are_chosen_where_they_are_faster(dilation: int, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(2, 2048, 48, 48).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 2048, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    calls: dict[str, Call] = {
        "stock": lambda: F.conv2d(x, weight, padding=dilation, dilation=dilation),
        "taps": lambda: convolve_by_taps(x, weight, dilation),
    }
    with torch.no_grad():
        seconds = alternating(calls, repeats=5)
    is_chosen = is_faster_by_taps(x.device, x.dtype, channels=2048, dilation=dilation)
    with capsys.disabled():
        print(write(f"taps_rate_{dilation}", {"seconds": seconds, "taps_are_chosen": is_chosen}))
    assert seconds["taps" if is_chosen else "stock"] < 1.1 * min(seconds.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "side", "kernel", "stride", "dilation"),
    [(96, 160, 3, 2, 1), (672, 20, 5, 1, 1), (1152, 20, 3, 1, 2), (672, 20, 5, 1, 4), (256, 48, 3, 1, 12)],
)
def test_depthwise_convolutions(
    dtype: torch.dtype,
    channels: int,
    side: int,
    kernel: int,
    stride: int,
    dilation: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Values and gradients of layers of EfficientNets and of a separable ASPP, to PyTorch's own in both layouts."""
    geometry: dict[str, Any] = {"stride": stride, "padding": dilation * (kernel // 2), "dilation": dilation}
    plain, ours = (
        member(channels, channels, kernel, groups=channels, bias=False, **geometry).to(dtype)
        for member in (nn.Conv2d, DepthwiseConv2d)
    )
    x = torch.randn(4, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def call(layer: nn.Conv2d, layout: str = "channels_last") -> None:
        given = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        y = layer(given)
        y.backward(y.detach())

    calls: dict[str, Call] = {"ours": lambda: call(ours)}
    calls |= {layout: lambda layout=layout: call(plain, layout) for layout in LAYOUTS}  # type: ignore[misc]
    work = f"{channels}x{side}x{side}_kernel_{kernel}_stride_{stride}_dilation_{dilation}"
    report(f"depthwise_{str(dtype).removeprefix('torch.')}_{work}", calls, capsys, wanted=1, repeats=9)


@pytest.mark.parametrize(("num_classes", "side"), [(11, 23), (21, 32), (150, 64)])
def test_labels(num_classes: int, side: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With pages of 4 KB 2 to 3 times as fast; with huge pages, which help the others more, about as fast."""
    scores = torch.randn(2, num_classes, side, side)
    calls: dict[str, Call] = {"ours": lambda: tiled_labels(scores, (512, 512))}
    for layout, order in LAYOUTS.items():
        given = scores.contiguous(memory_format=order)
        calls[layout] = lambda given=given: resize(given, (512, 512)).argmax(dim=1)  # type: ignore[misc]
    report(f"labels_{num_classes}_classes", calls, capsys, wanted=1, repeats=7, least=0.5)


@pytest.mark.parametrize(("num_classes", "side"), [(11, 23), (21, 32), (150, 64)])
def test_loss(num_classes: int, side: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With its gradient by the scores before they are resized."""
    mask, loss = torch.randint(0, num_classes, (2, 512, 512)), CrossEntropyLoss()
    scores = torch.randn(2, num_classes, side, side).requires_grad_()
    calls: dict[str, Call] = {"ours": lambda: loss(scores, mask).backward()}
    for layout, order in LAYOUTS.items():
        given = scores.detach().contiguous(memory_format=order).requires_grad_()
        calls[layout] = lambda given=given: F.cross_entropy(resize(given, (512, 512)), mask).backward()  # type: ignore[misc]
    report(f"loss_{num_classes}_classes", calls, capsys, wanted=1, repeats=7, least=0.5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_validation_of_camvid(precision: str, real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From files to mIoU, against the loop that people write around smp and torchmetrics, one reading worker each."""
    dataset = camvid(real_data)
    net = DeepLabV3(11, backbone="tf_efficientnet_lite0", pretrained=False)
    module = SegmentationModule(net, classes=dataset.classes)
    data = SegmentationDataModule(dataset, val_dataset=dataset, split="official", batch_size=4, num_workers=1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", precision=precision, **quiet)  # type: ignore[arg-type]
    with other_process() as other:
        calls: dict[str, Call] = {
            "ours": lambda: trainer.validate(module, data, verbose=False),
            "smp and torchmetrics": lambda: other.submit(validate_as_usual, real_data, precision != "32-true").result(),
        }
        report(f"validation_camvid_{precision}", calls, capsys, wanted=3)


def camvid(real_data: Path) -> MaskFolderDataset:
    table = ClassTable(CAMVID, ignore_ids=[11])
    return MaskFolderDataset(str(real_data / "camvid"), "val", masks="valannot", classes=table)


@cache
def usual_net() -> nn.Module:
    return smp.DeepLabV3("tu-tf_efficientnet_lite0", encoder_weights=None, classes=11, encoder_output_stride=16).eval()


def validate_as_usual(real_data: Path, is_half: bool) -> None:
    net, confusion = usual_net(), MulticlassConfusionMatrix(11, ignore_index=255)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        for images, masks in DataLoader(_Pictures(camvid(real_data)), batch_size=4, num_workers=1):
            logits = net(F.pad(images, (0, 0, 4, 4)))[..., 4:-4, :]  # it takes multiples of 16 only
            confusion.update(logits.float().argmax(dim=1), masks)
    confusion.compute()


class _Pictures(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Normalised floats, as torchvision's documentation shows it."""

    def __init__(self, dataset: MaskFolderDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torchvision.transforms.functional.to_tensor(Image.open(self.dataset.paths[index]).convert("RGB"))
        mask = np.array(Image.open(str(self.dataset.paths[index]).replace("/val/", "/valannot/")))
        image = torchvision.transforms.functional.normalize(image, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return image, torch.from_numpy(np.where(mask == 11, 255, mask).astype(np.int64))
