import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deeplab_lightning import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus
from deeplab_lightning.models.backbone import build_backbone
from deeplab_lightning.models.deeplab import DeepLab
from tests.models.references import randomise

MEMBERS: list[tuple[type[DeepLab], dict[str, Any]]] = [
    (DeepLabV1, {"backbone": "vgg11", "hidden_channels": 8, "atrous_rate": 4}),
    (DeepLabV2, {"backbone": "test_resnet", "hidden_channels": None, "scales": (0.5, 1.0)}),
    (DeepLabV3, {"backbone": "test_resnet", "aspp_channels": 8, "auxiliary_weight": 0.4}),
    (DeepLabV3Plus, {"backbone": "test_resnet", "aspp_channels": 8, "separable": True, "atrous_rates": [2, 3]}),
]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked a hub")

    for name in ("hf_hub_download", "hub_weights_file", "load_package_weights"):
        for module in ("huggingface_hub.hub_mixin", "deeplab_lightning.models.backbone"):
            monkeypatch.setattr(f"{module}.{name}", refuse, raising=False)


@pytest.mark.parametrize(("member", "arguments"), MEMBERS)
def test_a_saved_network_is_loaded_bit_for_bit(
    member: type[DeepLab], arguments: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    build: Callable[..., DeepLab] = member
    net = build(3, pretrained=False, **arguments)
    randomise(net).to(memory_format=torch.channels_last)
    net.save_pretrained(tmp_path / "net", classes=["sky", "road", "car"])
    loaded = member.from_pretrained(tmp_path / "net")
    assert type(loaded) is member
    assert not loaded.training
    state = net.state_dict()
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {n: v.shape for n, v in state.items()}
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        loaded.to(memory_format=torch.channels_last)
        assert torch.equal(loaded(images), net.eval()(images))
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    expected = {"num_classes": 3, "architecture": member.__name__, "classes": ["sky", "road", "car"]} | arguments
    expected |= {"mean": list(net.backbone.mean), "std": list(net.backbone.std), "pretrained": False, "weights": None}
    assert {key: config[key] for key in expected} == json.loads(json.dumps(expected))
    tensors = load_file(tmp_path / "net" / "model.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in state.items())
    loaded.save_pretrained(tmp_path / "again", classes=config["classes"])
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_a_saved_network_needs_no_imagenet_weights(tmp_path: Path) -> None:
    net = DeepLabV3(2, backbone="test_resnet", aspp_channels=8, pretrained=False)
    net._hub_mixin_config["pretrained"] = True  # type: ignore[index]
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pretrained"] is False
    config = json.loads((tmp_path / "config.json").read_text()) | {"pretrained": True, "weights": "https://none"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert isinstance(DeepLabV3.from_pretrained(str(tmp_path)), DeepLabV3)


def test_errors_name_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: /.*nothing"):
        DeepLabV3.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no such folder: /.*nothing"):
        DeepLabV3.from_pretrained("owner/nothing")
    net = DeepLabV3(2, backbone="test_resnet", aspp_channels=8, pretrained=False)
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"describes a DeepLabV3, not a DeepLabV3Plus: load it with DeepLabV3\."):
        DeepLabV3Plus.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auxiliary_weight": 0.4}))
    with pytest.raises(ValueError, match=r"(?s)do not fit DeepLabV3: .*Missing key.*auxiliary"):
        DeepLabV3.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model.safetensors; take a folder"):
        DeepLabV3.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="classes must hold 2 names, one per class, got 1"):
        net.save_pretrained(tmp_path, classes=["sky"])
    backbone = build_backbone("test_resnet", output_stride=16, pretrained=False)
    with pytest.raises(ValueError, match="DeepLab was built from backbone, head, which config.json cannot hold"):
        DeepLab(backbone, torch.nn.Conv2d(backbone.out_channels, 2, 1), num_classes=2).save_pretrained(tmp_path)
