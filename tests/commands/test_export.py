"""`deeplab export` on tiny checkpoints; files are run without the package."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deeplab_lightning import DeepLabV1, SegmentationModule, export
from deeplab_lightning.cli import main
from deeplab_lightning.commands import export as command
from deeplab_lightning.data.classes import ClassTable
from tests.conftest import write_image

README = Path(__file__).parents[2] / "deeplab_lightning" / "export" / "README.md"
COLORS = [[10, 20, 30], [200, 0, 0], [0, 0, 255]]
ARGUMENTS: dict[str, Any] = {"backbone": "vgg11", "hidden_channels": 8, "dropout": 0.1, "pretrained": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a training writes it, but for weights that nobody trained."""
    torch.manual_seed(0)
    classes = ClassTable(["sky", "road", "car"], colors=COLORS)
    net = {"class_path": "deeplab_lightning.DeepLabV1", "init_args": ARGUMENTS}
    module = SegmentationModule(DeepLabV1(3, **ARGUMENTS), classes=classes)
    nn.init.normal_(module.net.get_submodule("head.heads.0.3").weight)  # type: ignore[arg-type]
    module.config = {"model": {"net": net}}
    content = {"state_dict": module.state_dict(), "pytorch-lightning_version": L.__version__}
    module.on_save_checkpoint(content)
    path = tmp_path_factory.mktemp("export") / "best.ckpt"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path) -> Path:
    path = checkpoint.parent / "out" / "model.onnx"
    main(["export", "--ckpt_path", str(checkpoint), "--output", str(path)])
    return path


@pytest.fixture(scope="module")
def label_file(checkpoint: Path) -> Path:
    path = checkpoint.parent / "labels.onnx"
    main(["export", "--ckpt_path", str(checkpoint), "--output", str(path), "--argmax"])
    return path


def expected(checkpoint: Path, images: torch.Tensor) -> torch.Tensor:
    module = SegmentationModule.load_from_checkpoint(checkpoint).eval()
    with torch.no_grad():
        logits = module(images)
    assert isinstance(logits, torch.Tensor)
    return logits


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 3, 71, 45)])
def test_onnx_takes_uint8_images_of_any_size(checkpoint: Path, onnx_file: Path, shape: tuple[int, ...]) -> None:
    images = random_images(*shape)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    [entry], [result] = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert (result.name, result.shape) == ("logits", ["batch", 3, "height", "width"])
    [logits] = session.run(None, {"images": images.numpy()})
    assert np.allclose(logits, expected(checkpoint, images).numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_onnx_names_what_inference_needs(onnx_file: Path, checkpoint: Path) -> None:
    properties = onnxruntime.InferenceSession(onnx_file).get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == ["sky", "road", "car"]
    assert json.loads(properties["palette"]) == COLORS
    assert json.loads(properties["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(properties["std"]) == [0.229, 0.224, 0.225]
    assert properties["input"] == "images: (B, 3, H, W) uint8 RGB, 0-255; H and W at least 16"
    assert properties["output"] == "logits: (B, K, H, W) float32"
    assert properties["network"] == "deeplab_lightning.models.deeplab.DeepLabV1"
    assert sorted(path.name for path in onnx_file.parent.iterdir()) == ["model.onnx"]
    assert str(Path(export.__file__).parent).encode() not in onnx_file.read_bytes()  # no paths of this machine


@pytest.mark.slow
def test_onnx_gives_labels(checkpoint: Path, label_file: Path) -> None:
    images = random_images(2, 3, 45, 64)
    [labels] = onnxruntime.InferenceSession(label_file).run(None, {"images": images.numpy()})
    assert (labels.dtype, labels.shape) == (np.uint8, (2, 45, 64))
    wanted = expected(checkpoint, images).argmax(dim=1).numpy()
    assert len(np.unique(wanted)) > 1
    assert np.mean(labels == wanted) > 0.999


@pytest.mark.long
def test_torch_export_takes_normalised_floats(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    main(
        [
            *("export", "--ckpt_path", str(checkpoint), "--format", "torch_export", "--no_preprocessing"),
            *("--output", str(path)),
        ]
    )
    extra = {"metadata.json": ""}
    loaded = torch.export.load(path, extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    assert json.loads(metadata["classes"]) == ["sky", "road", "car"]
    mean, std = (torch.tensor(json.loads(metadata[key]))[:, None, None] for key in ("mean", "std"))
    images = random_images(1, 3, 71, 45)
    with torch.no_grad():
        logits = loaded((images / 255 - mean) / std)
    assert torch.allclose(logits, expected(checkpoint, images), atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_another_computation_is_an_error_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The weights change between tracing and comparing."""
    traced = export.trace

    def broken(model: export.InferenceModel) -> torch.export.ExportedProgram:
        program = traced(model)
        with torch.no_grad():
            model.net.get_submodule("head.heads.0.3").weight[0] += 0.05  # type: ignore[operator, index]
        return program

    monkeypatch.setattr(command, "trace", broken)
    output = tmp_path / {"onnx": "model.onnx", "torch_export": "model.pt2"}[name]
    output.write_text("the one before")
    with pytest.raises(RuntimeError, match=r"batch of 1 with 16 x 48 pixels it is off by .* of the largest logit"):
        main(["export", "--ckpt_path", str(checkpoint), "--format", name, "--output", str(output)])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(output.name, "the one before")]


@pytest.fixture(scope="module")
def module(checkpoint: Path) -> SegmentationModule:
    return SegmentationModule.load_from_checkpoint(checkpoint)


def _wrong_run(wrong: Callable[[Tensor, Tensor], Tensor], model: export.InferenceModel, images: Tensor) -> Tensor:
    return wrong(model(images), model.logits(images))


WRONG_LABELS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda labels, logits: logits.argmin(dim=1).to(torch.uint8),
    lambda labels, logits: labels.long(),
    lambda labels, logits: labels + 200,
    lambda labels, logits: labels[:, 1:],
    lambda labels, logits: torch.zeros_like(labels) if len(labels) == 2 else labels,
]


def test_wrong_labels_are_an_error(module: SegmentationModule) -> None:
    model = export.InferenceModel(module, has_preprocessing=True, has_argmax=True)
    assert export.compare(model, model).startswith("at most 0 of the largest logit")
    for wrong in WRONG_LABELS:
        with pytest.raises(RuntimeError, match="computes something else than the network"):
            export.compare(model, partial(_wrong_run, wrong, model))


def test_logits_that_are_not_finite_are_an_error(module: SegmentationModule) -> None:
    model = export.InferenceModel(copy.deepcopy(module), has_preprocessing=False, has_argmax=False)
    with pytest.raises(RuntimeError, match="is off by nan of the largest logit"):
        export.compare(model, lambda images: model(images) * torch.nan)
    with torch.no_grad():
        model.net.get_submodule("head.heads.0.3").bias.fill_(torch.inf)  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="the network's logits are not finite"):
        export.compare(model, model)


def test_missing_packages_are_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(RuntimeError, match="needs onnxscript: `pip install onnxscript`"):
        main(["export", "--ckpt_path", str(checkpoint), "--output", str(tmp_path / "model.onnx")])


def test_wrong_checkpoints_are_named(tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path / "model.onnx"), "--ckpt_path"]
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: /.*nothing.ckpt"):
        main(["export", *arguments, str(tmp_path / "nothing.ckpt")])
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(ValueError, match=r"text.ckpt is no checkpoint of `deeplab fit`"):
        main(["export", *arguments, str(tmp_path / "text.ckpt")])
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"bare.ckpt does not describe its network"):
        main(["export", *arguments, str(tmp_path / "bare.ckpt")])


@pytest.mark.slow
def test_a_network_that_looks_at_the_pixels_is_an_error(module: SegmentationModule) -> None:
    model = export.InferenceModel(copy.deepcopy(module), has_preprocessing=True, has_argmax=False)
    model.net.head.register_forward_pre_hook(lambda _, inputs: inputs[0] if inputs[0].mean() > 0 else -inputs[0])
    with pytest.raises(RuntimeError, match="this DeepLabV1 cannot be exported for all sizes: "):
        export.trace(model)


@pytest.mark.slow
def test_the_script_of_the_readme_draws_a_mask(label_file: Path, tmp_path: Path) -> None:
    [script] = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "onnxruntime" in code]
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    shutil.copy(label_file, tmp_path / "model.onnx")
    write_image(tmp_path / "photo.jpg", (45, 64))
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'deeplab_lightning']))\n"
    subprocess.run([sys.executable, "-c", blocked + script], cwd=tmp_path, check=True)
    mask = Image.open(tmp_path / "mask.png").convert("RGB")
    image = torch.from_numpy(np.array(Image.open(tmp_path / "photo.jpg"))).permute(2, 0, 1)[None]
    [labels] = onnxruntime.InferenceSession(label_file).run(None, {"images": image.numpy()})
    assert np.array_equal(np.asarray(mask), np.array(COLORS, dtype=np.uint8)[labels[0]])
