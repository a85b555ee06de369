"""Images go through the same steps wherever a trained network is used."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from deeplab_lightning import DeepLabV3, SegmentationModule
from deeplab_lightning.cli import main
from deeplab_lightning.data import EvalTransforms
from deeplab_lightning.models import deeplab
from deeplab_lightning.resizing import shrunk_size
from tests.conftest import CLASSES, draw_noise_data
from tests.export.traces import traced_once
from tests.models.references import randomise

MAX_SIZE = 160
SIZE = (700, 1001)
COLORS = [[10, 20, 30], [200, 0, 0], [0, 0, 255]]
ARGUMENTS: dict[str, Any] = {"backbone": "vgg11", "aspp_channels": 8, "pretrained": False}


def pictures(*size: int) -> Tensor:
    """Return (1, 3, H, W) uint8: smooth patches with some noise, as in photos."""
    generator = torch.Generator().manual_seed(0)
    patches = F.interpolate(torch.rand(1, 3, 7, 9, generator=generator) * 200, size, mode="bicubic")
    return (patches + torch.rand(1, 3, *size, generator=generator) * 55).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, and `a.ckpt` of a training whose evaluation images had at most MAX_SIZE pixels."""
    root = tmp_path_factory.mktemp("size")
    draw_noise_data(root)
    Image.fromarray(pictures(*SIZE)[0].permute(1, 2, 0).numpy()).save(root / "photo.png")
    torch.manual_seed(0)
    net = randomise(DeepLabV3(3, **ARGUMENTS))
    classify = net.get_submodule("head.2")
    with torch.no_grad():  # every class somewhere
        classify.weight.normal_()  # type: ignore[operator]
        classify.bias -= net.eval()(pictures(88, 126)).mean(dim=(0, 2, 3))
    torch.save(net.state_dict(), root / "weights.pth")
    classes = {"names": list(CLASSES), "colors": COLORS, "ignore_ids": [11]}
    dataset = {"root": str(root), "images": "images", "masks": "masks", "classes": classes}
    config = {
        "wandb": "disabled", "output_dir": str(root / "runs"), "name": "first",
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1, "enable_model_summary": False},
        "model": {
            "net": {
                "class_path": "DeepLabV3", "init_args": {**ARGUMENTS, "weights": str(root / "weights.pth")},
            },
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}},
        },
        "data": {
            "dataset": {"class_path": "MaskFolderDataset", "init_args": dataset},
            "batch_size": 2, "num_workers": 0,
            "train_transforms": {"class_path": "TrainTransforms", "init_args": {"crop_size": 32}},
            "eval_transforms": {"class_path": "EvalTransforms", "init_args": {"max_size": MAX_SIZE}},
        },
    }  # fmt: skip
    for part in ("train_transforms", "eval_transforms"):
        transforms = config["data"][part]  # type: ignore[index]
        transforms["class_path"] = f"deeplab_lightning.data.transforms.{transforms['class_path']}"
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(root / "config.yaml")])
    shutil.copy(root / "runs" / "first" / "checkpoints" / "last.ckpt", root / "a.ckpt")
    return root


@pytest.fixture(scope="module")
def photo(folder: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(folder / "photo.png"))).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def expected(folder: Path) -> "np.ndarray[Any, Any]":
    """The labels of the command line."""
    output = ["--images", str(folder / "photo.png"), "--output", str(folder / "out"), "--output_dir", str(folder)]
    main(["predict", "--ckpt_path", str(folder / "a.ckpt"), *output])
    labels = np.asarray(Image.open(folder / "out" / "masks" / "photo.png"))
    assert labels.shape == SIZE
    assert sorted(np.bincount(labels.reshape(-1)))[-2] > 50_000  # two classes at least
    return labels


def export(folder: Path, name: str, *options: str) -> Path:
    main(["export", "--ckpt_path", str(folder / "a.ckpt"), "--output", str(folder / name), *options])
    return folder / name


@pytest.mark.long
def test_command_line_python_onnx_and_torch_export_find_the_same_labels(
    folder: Path, photo: Tensor, expected: "np.ndarray[Any, Any]"
) -> None:
    module = SegmentationModule.load_from_checkpoint(folder / "a.ckpt").eval()
    module.net.save_pretrained(folder / "net")
    net = DeepLabV3.from_pretrained(folder / "net")
    with traced_once():
        onnx = onnxruntime.InferenceSession(export(folder, "model.onnx", "--argmax"))
        saved = torch.export.load(export(folder, "model.pt2", "--argmax", "--format", "torch_export"))
    with torch.no_grad():
        found = {
            "module.predict": module.predict(photo)[0],
            "module": module(photo).argmax(dim=1)[0],
            "net.predict": net.predict(photo[0]),
            "net": net(photo).argmax(dim=1)[0],
            "onnx": torch.from_numpy(onnx.run(None, {"images": photo.numpy()})[0])[0],
            "torch.export": saved.module()(photo)[0],
        }
    shares = {name: float(np.mean(labels.numpy() == expected)) for name, labels in found.items()}
    assert {name: share for name, share in shares.items() if share <= 0.999} == {}
    properties = onnx.get_modelmeta().custom_metadata_map
    assert json.loads(properties["max_size"]) == MAX_SIZE
    assert properties["input"].endswith(
        "; the graph shrinks the longer side to at most 160 pixels, bilinear and antialiased"
    )
    small = pictures(50, 70)
    assert np.array_equal(onnx.run(None, {"images": small.numpy()})[0], module.predict(small).numpy())


@pytest.mark.long
def test_the_metadata_say_what_a_graph_without_preprocessing_needs(
    folder: Path, photo: Tensor, expected: "np.ndarray[Any, Any]"
) -> None:
    """Written with PIL and the metadata alone, as a user without this package does."""
    path = export(folder, "plain.onnx", "--preprocess", "metadata")
    session = onnxruntime.InferenceSession(path)
    metadata = {
        key: json.loads(value)
        for key, value in session.get_modelmeta().custom_metadata_map.items()
        if key in {"max_size", "mean", "std"}
    }
    scale = metadata["max_size"] / max(SIZE)
    image = Image.open(folder / "photo.png").resize(
        (round(SIZE[1] * scale), round(SIZE[0] * scale)), Image.Resampling.BILINEAR
    )
    pixels = (np.asarray(image) / 255 - metadata["mean"]) / metadata["std"]
    [logits] = session.run(None, {"images": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    labels = F.interpolate(torch.from_numpy(logits), SIZE, mode="bilinear").argmax(dim=1)[0]
    assert np.mean(labels.numpy() == expected) > 0.999


def test_a_saved_network_knows_names_colours_and_preprocessing(folder: Path, photo: Tensor, tmp_path: Path) -> None:
    module = SegmentationModule.load_from_checkpoint(folder / "a.ckpt")
    module.net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["classes"], config["palette"], config["max_size"]) == (list(CLASSES), COLORS, MAX_SIZE)
    (tmp_path / "config.json").write_text(json.dumps(config | {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}))
    net = DeepLabV3.from_pretrained(tmp_path)
    assert (net.class_names, net.palette, net.preprocess.max_size) == (list(CLASSES), COLORS, MAX_SIZE)
    assert (net.backbone.mean, net.backbone.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    prepared = net.preprocess(photo)
    assert prepared.shape == (1, 3, *shrunk_size(SIZE, MAX_SIZE))
    shrunk, _ = EvalTransforms(MAX_SIZE)(photo[0], None)
    assert torch.allclose(prepared[0], (shrunk / 255 - 0.5) / 0.25, atol=1e-5)
    assert net.train().preprocess(photo).shape == photo.shape  # crops of a training keep their size
    with pytest.raises(
        ValueError, match=r"predict takes RGB images in 0-255, .* uint8, got \(1, 3, 8, 8\) torch.float32"
    ):
        net.predict(torch.zeros(1, 3, 8, 8))


def test_the_script_of_the_documentation_finds_the_same_labels(
    folder: Path, expected: "np.ndarray[Any, Any]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = Path(deeplab.__file__).with_name("README.md").read_text()
    [script] = [
        code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "load_from_checkpoint" in code
    ]
    (tmp_path / "runs" / "first" / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "a.ckpt", tmp_path / "runs" / "first" / "checkpoints" / "best.ckpt")
    shutil.copy(folder / "photo.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(script, names)
    assert np.mean(names["labels"].numpy() == expected) > 0.999
    assert (names["names"], names["palette"]) == (list(CLASSES), COLORS)
    assert names["pixels"].shape[-1] == MAX_SIZE


def test_sizes_are_rounded_as_python_rounds() -> None:
    generator = np.random.default_rng(0)
    for height, width, limit in generator.integers(1, 60, (3000, 3)).tolist():
        longest = max(height, width)
        scale = min(longest, limit)
        assert shrunk_size((height, width), limit) == tuple(
            max(1, round(side * scale / longest)) for side in (height, width)
        )


def test_a_checkpoint_of_version_0_1_0_has_the_evaluation_size_of_its_configuration(
    folder: Path, photo: Tensor, expected: "np.ndarray[Any, Any]", tmp_path: Path
) -> None:
    checkpoint = torch.load(folder / "a.ckpt", weights_only=True)
    del checkpoint["network"]  # which is new since then
    torch.save(checkpoint, tmp_path / "old.ckpt")
    module = SegmentationModule.load_from_checkpoint(tmp_path / "old.ckpt")
    assert np.mean(module.predict(photo)[0].numpy() == expected) > 0.999


def test_an_evaluation_size_below_the_least_of_the_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(folder / "a.ckpt", weights_only=True)
    checkpoint["network"]["max_size"] = 12
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"max_size\) is 12 pixels, but .* needs at least 32"):
        main(["export", "--ckpt_path", str(tmp_path / "a.ckpt"), "--output", str(tmp_path / "model.onnx")])
