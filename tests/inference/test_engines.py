"""Networks whose backbone and head an engine computes, beside PyTorch."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from deeplab_lightning import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus
from deeplab_lightning.inference import Ensemble, Views, engines
from deeplab_lightning.inference.engines import EngineName, EngineNet, check_engine
from deeplab_lightning.inference.tiles import Tiled, Tiles
from deeplab_lightning.kernels import speed_up
from deeplab_lightning.models.deeplab import DeepLab

NETS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "v1": (DeepLabV1, {"backbone": "test_resnet", "hidden_channels": 8}),
    "v2_of_two_scales": (DeepLabV2, {"backbone": "test_resnet", "hidden_channels": 8, "scales": (0.75, 1.0)}),
    "v3": (DeepLabV3, {"backbone": "test_efficientnet", "aspp_channels": 8}),
    "v3plus_with_same_padding": (
        DeepLabV3Plus,
        {"backbone": "tf_mobilenetv3_small_minimal_100", "aspp_channels": 8, "separable": True},
    ),
}
ENGINES: tuple[EngineName, ...] = ("openvino", "onnx")


def network(name: str) -> DeepLab:
    """A network whose statistics and logits are not those of fresh weights."""
    torch.manual_seed(0)
    kind, arguments = NETS[name]
    net: DeepLab = kind(3, pretrained=False, **arguments)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.8, 1.2)
    net = net.to(memory_format=torch.channels_last).eval()
    net.preprocess.channels_last = True
    return net


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETS)
def test_an_engine_computes_the_network_for_images_of_any_size(name: str, engine: EngineName) -> None:
    net = network(name)
    speed_up(net)
    found = EngineNet(net, engine)
    for shape in ((1, 3, 65, 97), (2, 3, 48, 64), (1, 3, 97, 130), (1, 3, 20, 33)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            expected, logits = net(images), found(images)
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert found.describe()["precision"] == "fp32"


def test_views_and_tiles_see_the_engine_as_the_network() -> None:
    net = network("v3")
    found = EngineNet(net, "openvino")
    images = torch.randint(0, 256, (1, 3, 100, 130), dtype=torch.uint8)
    views, tiles = Views((0.75, 1.0), flip=True), Tiles(64, 16)
    with torch.no_grad():
        expected = Tiled(Ensemble([net], views), tiles)(images)
        assert torch.allclose(Tiled(Ensemble([found], views), tiles)(images), expected, atol=1e-4)
        found._compiled = engines._Compiled(lambda x: net.decode(net.encode(x)) * 0, "fp32")
        assert not torch.allclose(Tiled(Ensemble([found], views), tiles)(images), expected, atol=0.01)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_computed_where_the_processor_has_it(dtype: torch.dtype) -> None:
    net, images = network("v3"), torch.randint(0, 256, (1, 3, 65, 97), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(images)
        found = EngineNet(net.to(dtype), "openvino", "bf16")
        difference = (found(images) - expected).abs().max() / expected.abs().max()
    assert found.precision in {"bf16", "fp32"}
    assert difference < 0.05
    assert found.precision == "fp32" or difference > 1e-5


class OfItsOwn(DeepLabV3):
    def forward(self, images: Tensor) -> Tensor:
        return images


class Fixed(DeepLabV3):
    def decode(self, features: list[Tensor]) -> Tensor:
        return self.head(features[-1]) * float(features[-1].shape[-1])  # a constant of the trace


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (OfItsOwn, "OfItsOwn computes its logits in a way of its own"),
        (Fixed, "computes something else than this Fixed"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_networks_that_an_engine_would_compute_wrongly_are_refused(
    kind: type[DeepLabV3], text: str, engine: EngineName
) -> None:
    with pytest.raises(ValueError, match=text):
        EngineNet(kind(3, backbone="test_resnet", aspp_channels=8, pretrained=False), engine)


@pytest.mark.parametrize(
    ("engine", "device", "precision", "text"),
    [
        ("tensorrt", "cpu", "32-true", "--engine must be torch, openvino or onnx, got 'tensorrt'"),
        (
            "onnx",
            "cuda:0",
            "32-true",
            "computes on the CPU alone, got the device cuda:0: add --trainer.accelerator cpu",
        ),
        ("openvino", "cpu", "64-true", "takes trainer.precision 32-true, bf16-mixed, bf16-true, got 64-true"),
    ],
)
def test_what_an_engine_cannot_do_is_named(engine: str, device: str, precision: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_engine(engine, torch.device(device), precision)


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("openvino", r"needs openvino: `pip install openvino`, or in a checkout `pip install .\[openvino\]`"),
        ("onnx", r"needs onnx, onnxruntime: .* `pip install .\[export\]`"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, engine: Literal["openvino", "onnx"], text: str
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    check_engine("torch", torch.device("cuda"))
    with pytest.raises(RuntimeError, match=text):
        check_engine(engine, torch.device("cpu"))
