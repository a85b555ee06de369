"""How far the logits of the family are from other implementations with the same weights. `make bench`.

Weights are random, with BatchNorm statistics that keep the features from vanishing; images have even and odd sizes. The
effect of rounding alone is reported as well: the difference of the other network from itself in double precision.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import segmentation as tv

from deeplab_lightning import DeepLabV2, DeepLabV3, DeepLabV3Plus, load_weights
from tests.benchmarks.measure import write
from tests.models.references import CaffeDeepLabV2, multi_scale, randomise, written_out_v3plus
from tests.models.test_weights import RESNET_V2, FirstVersion, random_images

Logits = Callable[[Tensor], Tensor]
Pair = tuple[Logits, Logits, list[nn.Module]]
NUM_CLASSES = 21


def torchvisions(build: Callable[..., nn.Module], **arguments: Any) -> Pair:
    theirs = randomise(build(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True))
    net = DeepLabV3(NUM_CLASSES, pretrained=False, **arguments).eval()
    load_weights(net, theirs.state_dict())
    return net, lambda x: theirs(x)["out"], [net, theirs]


def smps(encoder: str, backbone: str, rule: Any) -> Pair:
    theirs: Any = randomise(smp.DeepLabV3(encoder, encoder_weights=None, classes=NUM_CLASSES))
    net = DeepLabV3(NUM_CLASSES, backbone=backbone, output_stride=8, dilation=rule, pretrained=False).eval()
    load_weights(net, theirs.state_dict())
    head = theirs.segmentation_head[0]  # before the resize, for which smp aligns corners
    return net.coarse_logits, lambda x: head(theirs.decoder(theirs.encoder(x))), [net, theirs]  # type: ignore[return-value]


def caffes() -> Pair:
    theirs = randomise(CaffeDeepLabV2(NUM_CLASSES, (3, 4, 6, 3)))
    net = DeepLabV2(NUM_CLASSES, backbone="caffe_resnet50", scales=(1.0, 0.5, 0.75), **RESNET_V2).eval()
    load_weights(net, {f"scale.{key}": value for key, value in theirs.state_dict().items()})

    def logits(x: Tensor) -> Tensor:
        logits = multi_scale(theirs, x.flip(1))
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)

    return net, logits, [net, theirs]


def firsts() -> Pair:
    theirs = FirstVersion(NUM_CLASSES, 1024).eval()
    state = theirs.state_dict()
    net = DeepLabV2(NUM_CLASSES, pretrained=False).eval()
    load_weights(net, state)

    def logits(x: Tensor) -> Tensor:  # its own resize takes sizes that are divisible by 8
        return F.interpolate(theirs.coarse(x), size=x.shape[-2:], mode="bilinear")

    return net, logits, [net, theirs]


def papers_v3plus() -> Pair:
    net = randomise(DeepLabV3Plus(NUM_CLASSES, pretrained=False))
    return net, lambda x: written_out_v3plus(net, x), [net]


RESNET: dict[str, Any] = {"output_stride": 8, "auxiliary_weight": 0.5}
MOBILENET: dict[str, Any] = {"backbone": "tv-mobilenet_v3_large", "atrous_rates": (12, 24, 36), "dilation": "smp"}
ROWS: dict[str, Callable[[], Pair]] = {
    "DeepLabV2 vgg16 | first version's layout, written out": firsts,
    "DeepLabV2 caffe_resnet50, three scales | kazuto1011's layout, written out": caffes,
    "DeepLabV3 resnet50 | torchvision": lambda: torchvisions(tv.deeplabv3_resnet50, **RESNET),
    "DeepLabV3 resnet101 | torchvision": lambda: torchvisions(tv.deeplabv3_resnet101, backbone="resnet101", **RESNET),
    "DeepLabV3 mobilenet_v3_large | torchvision": lambda: torchvisions(tv.deeplabv3_mobilenet_v3_large, **MOBILENET),
    "DeepLabV3 resnet18 | smp, before the resize": lambda: smps("resnet18", "resnet18", "smp"),
    "DeepLabV3 mobilenet_v2 | smp, before the resize": lambda: smps("mobilenet_v2", "mobilenet_v2", "smp"),
    "DeepLabV3 timm's resnet18 | smp, before the resize": lambda: smps("tu-resnet18", "resnet18", "torchvision"),
    "DeepLabV3Plus resnet50 | section 3.1 of the paper, written out": papers_v3plus,
}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Any]]:
    rows: dict[str, Any] = {}
    yield rows
    write("parity", {"rows": rows})


@pytest.mark.parametrize("row", list(ROWS))
def test_logits_agree(row: str, table: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    ours, theirs, nets = ROWS[row]()
    sizes = [(64, 64), (128, 96)] if "smp" in row else [(64, 64), (65, 47), (129, 97)]
    images = [random_images(size) for size in sizes]
    with torch.no_grad():
        single = [(ours(x), theirs(x)) for x in images]
        for net in nets:
            net.double()
        double = [(ours(x.double()), theirs(x.double())) for x in images]
    pairs = zip(single, double, strict=True)
    figures = {
        "largest_logit": max(float(b.abs().max()) for _, b in single),
        "difference": max(float((a - b).abs().max()) for a, b in single),
        "rounding_of_theirs": max(float((b - exact).abs().max()) for (_, b), (_, exact) in pairs),
        "difference_in_double": max(float((a - b).abs().max()) for a, b in double),
    }
    table[row] = figures
    with capsys.disabled():
        print(f"\n| {row} | " + " | ".join(f"{value:.1e}" for value in figures.values()) + " |", end="")
    assert figures["difference_in_double"] <= 1e-9
    assert figures["difference"] <= max(1e-5, 3 * figures["rounding_of_theirs"])
