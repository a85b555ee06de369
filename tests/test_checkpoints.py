"""Checkpoints are all that is needed: from Python or the command line, without the code of the training."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from deeplab_lightning import CrossEntropyLoss, DeepLabV3, DenseCRF, SegmentationDataModule, SegmentationModule
from deeplab_lightning.checkpoints import read_checkpoint
from deeplab_lightning.cli import main
from deeplab_lightning.data import ClassTable, EvalTransforms, MaskFolderDataset, TrainTransforms
from deeplab_lightning.errors import UserError
from deeplab_lightning.models import DeepLab
from deeplab_lightning.models.backbone import build_backbone
from tests.conftest import CLASSES, draw_noise_data, write_image

COLORS = [[10, 20, 30], [200, 0, 0], [0, 0, 255]]
TABLE = ClassTable(CLASSES, colors=COLORS, ignore_ids=[11])
FANCY_LOSS = """
import torch

class FancyLoss(torch.nn.CrossEntropyLoss):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__(ignore_index=255)
        self.scale = scale
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, logits, mask):
        return self.scale * super().forward(logits, mask)
"""


def net(**arguments: Any) -> DeepLabV3:
    torch.manual_seed(0)
    return DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False, **arguments)


def data(folder: Path, **arguments: Any) -> SegmentationDataModule:
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=TABLE)
    return SegmentationDataModule(
        dataset, 3, batch_size=2, num_workers=0, train_transforms=TrainTransforms(32), **arguments
    )


def fit(module: SegmentationModule, folder: Path, path: Path, **arguments: Any) -> SegmentationModule:
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=1, default_root_dir=path.parent,
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data(folder, **arguments))
    trainer.save_checkpoint(path)
    return module.eval()


def options(folder: Path) -> list[str]:
    dataset = {"root": str(folder), "images": "images", "masks": "masks"}
    classes = {"names": list(CLASSES), "ignore_ids": [11]}
    content = {"class_path": "MaskFolderDataset", "init_args": {**dataset, "classes": classes}}
    return ["--data.dataset", yaml.safe_dump(content, default_flow_style=True), "--data.num_workers", "0"]


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    draw_noise_data(folder)
    return folder


@pytest.fixture(scope="module")
def python(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SegmentationModule]:
    """A checkpoint as a notebook writes it, and its module."""
    path = tmp_path_factory.mktemp("python") / "a.ckpt"
    crf = DenseCRF(w1=0.5, iterations=2)
    loss = CrossEntropyLoss(class_weights=[1, 2, 3])
    module = SegmentationModule(net(atrous_rates=(2, 3)), loss, classes=TABLE, postprocess=crf, head_lr_multiplier=3.0)
    return path, fit(module, noise, path, eval_transforms=EvalTransforms(40))


def test_a_checkpoint_from_python_loads_without_arguments(python: tuple[Path, SegmentationModule]) -> None:
    path, module = python
    loaded = SegmentationModule.load_from_checkpoint(path).eval()
    assert type(loaded.net) is DeepLabV3
    assert loaded.classes == module.classes
    assert loaded.head_lr_multiplier == 3
    assert loaded.net.preprocess.max_size == 40
    assert isinstance(loaded.postprocess, DenseCRF)
    assert (loaded.postprocess.w1, loaded.postprocess.iterations) == (0.5, 2)
    assert isinstance(loaded.loss, CrossEntropyLoss)
    assert loaded.loss.class_weights is not None
    assert loaded.loss.class_weights.tolist() == [1, 2, 3]
    images = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    assert torch.equal(loaded.predict(images), module.predict(images))


@pytest.mark.long
def test_a_checkpoint_from_python_is_predicted_tested_and_exported(
    python: tuple[Path, SegmentationModule], noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, module = python
    monkeypatch.chdir(tmp_path)
    main(["predict", "--ckpt_path", str(path), "--images", str(noise / "images"), "--output", "out"])
    image = torch.from_numpy(np.array(Image.open(noise / "images" / "03.png"))).permute(2, 0, 1)
    mask = Image.open("out/masks/03.png")
    assert np.mean(np.asarray(mask) == module.predict(image).numpy()) > 0.999
    assert mask.getpalette()[:9] == [value for color in COLORS for value in color]  # type: ignore[index]
    for command in ("test", "validate"):
        main([command, "--ckpt_path", str(path), *options(noise), "--output_dir", command])
        [result] = Path(command).glob("*/result_*.json")
        assert '"miou": 0.' in result.read_text()
    tests = [option.replace("data.dataset", "data.test_dataset") for option in options(noise)]
    main(["test", "--ckpt_path", str(path), *tests, "--output_dir", "test alone"])
    words = ["--format", "torch_export", "--preprocess", "metadata", "--output", "model.pt2"]
    main(["export", "--ckpt_path", str(path), *words])
    assert Path("model.pt2").is_file()


def test_data_that_were_not_given_are_asked_for(python: tuple[Path, SegmentationModule]) -> None:
    with pytest.raises(ValueError, match="data.dataset is required"):
        main(["validate", "--ckpt_path", str(python[0])])


class Wide(DeepLabV3):
    """A network of a user, with an argument of its own."""

    def __init__(self, num_classes: int, *, width: int = 4) -> None:
        super().__init__(num_classes, backbone="test_resnet", aspp_channels=2 * width, pretrained=False)


@pytest.mark.slow
def test_a_network_of_ones_own_is_rebuilt_from_its_arguments(noise: Path, tmp_path: Path) -> None:
    module = fit(SegmentationModule(Wide(3, width=6), classes=TABLE), noise, tmp_path / "a.ckpt")
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt", trust=True).eval()
    assert type(loaded.net) is Wide
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    assert torch.equal(loaded.predict(images), module.predict(images))
    compiled = SegmentationModule(torch.compile(net()), classes=TABLE)  # type: ignore[arg-type]
    state = {"state_dict": compiled.state_dict(), "pytorch-lightning_version": L.__version__}
    compiled.on_save_checkpoint(state)
    torch.save(state, tmp_path / "compiled.ckpt")
    assert type(SegmentationModule.load_from_checkpoint(tmp_path / "compiled.ckpt").net) is DeepLabV3


def test_a_network_whose_arguments_are_unknown_is_named(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> DeepLab:
        backbone = build_backbone("test_resnet", output_stride=16, pretrained=False)
        return DeepLab(backbone, nn.Conv2d(backbone.out_channels, 3, 1), num_classes=3)

    path = tmp_path / "own.ckpt"
    module = fit(SegmentationModule(build(), classes=TABLE), noise, path, eval_transforms=EvalTransforms(40))
    message = r"own.ckpt does not hold the arguments backbone, head of its network .*deeplab.DeepLab"
    with pytest.raises(ValueError, match=message + r".*load_from_checkpoint\(path, net=...\)"):
        SegmentationModule.load_from_checkpoint(path)
    output = ["--output", str(tmp_path / "model.pt2")]
    for command in (["predict", "--images", str(noise)], ["export", "--format", "torch_export", *output]):
        with pytest.raises(ValueError, match=message):
            main([*command, "--ckpt_path", str(path)])
    loaded = SegmentationModule.load_from_checkpoint(path, net=build()).eval()
    assert loaded.net.preprocess.max_size == 40
    images = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    assert torch.equal(loaded.predict(images), module.predict(images))


def test_parts_that_a_checkpoint_cannot_hold_are_named(noise: Path, tmp_path: Path) -> None:
    def half(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return image[:, ::2, ::2], None if mask is None else mask[::2, ::2]

    def highest(images: Tensor, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    loss = nn.CrossEntropyLoss(ignore_index=255)
    module = SegmentationModule(net(), loss, classes=TABLE, postprocess=highest)
    fit(module, noise, tmp_path / "a.ckpt", eval_transforms=half)
    with (
        pytest.warns(UserWarning, match=r"was evaluated with tests.test_checkpoints.*\.half"),
        pytest.warns(UserWarning, match=r"does not hold its postprocess tests.test_checkpoints.*\.highest"),
    ):
        loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt")
    logits, mask = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"does not hold the arguments of its loss torch\..*CrossEntropyLoss: give"):
        loaded.train().loss(logits, mask)
    with pytest.warns(UserWarning, match="no loss is computed"):
        assert loaded.eval().loss(logits, mask).isnan()


def program(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `deeplab` as its console script does: the folder of the script, not the working folder, is searched."""
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; from deeplab_lightning.__main__ import run; run()"
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def foreign(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `deeplab fit` with loss, optimiser, transforms and callback from files of the working folder."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "my_losses.py").write_text(FANCY_LOSS)
    (folder / "my_parts.py").write_text(
        "import lightning as L\nfrom deeplab_lightning.data import TrainTransforms\nclass Quiet(L.Callback): ...\n"
        "class Crops(TrainTransforms): ...\nimport torch\nclass Steps(torch.optim.SGD): ...\n"
    )
    config = {
        "wandb": "disabled",
        "trainer": {
            "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1,
            "callbacks": [{"class_path": "my_parts.Quiet"}],
        },
        "model": {
            "net": {
                "class_path": "DeepLabV3",
                "init_args": {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False},
            },
            "loss": {"class_path": "my_losses.FancyLoss", "init_args": {"scale": 3.0}},
            "optimizer": {"class_path": "my_parts.Steps", "init_args": {"lr": 0.01}},
        },
        "data": {"batch_size": 2, "train_transforms": {"class_path": "my_parts.Crops", "init_args": {"crop_size": 32}}},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = program("fit", "-c", "config.yaml", *options(noise), "--name", "first", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "first" / "checkpoints" / "best.ckpt"


@pytest.mark.long
def test_a_checkpoint_needs_nothing_of_its_training(
    foreign: Path, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The working folder of the training holds its loss, optimiser, transforms and callback, and is not this one."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "new" / "photo.jpg")
    main(["predict", "--ckpt_path", str(foreign), "--images", "new", "--output", "out"])
    assert Path("out/masks/photo.png").is_file()
    with pytest.warns(UserWarning, match="the loss of .* since my_losses.FancyLoss is no class of .* use --trust"):
        main(["test", "--ckpt_path", str(foreign)])
    assert '"loss": null' in (foreign.parents[1] / "result_test.json").read_text()
    with pytest.warns(UserWarning, match="the loss of .* not available, since my_losses.FancyLoss cannot be imported"):
        main(["test", "--ckpt_path", str(foreign), "--trust"])
    main(["export", "--ckpt_path", str(foreign), "--format", "torch_export", "--output", "model.pt2"])
    module = SegmentationModule.load_from_checkpoint(foreign)
    with pytest.raises(ValueError, match="optimizer of .* is not available, since my_parts.Steps is no class of"):
        module.optimizer_factory([])


@pytest.mark.long
def test_options_replace_a_data_set_that_cannot_be_imported(
    foreign: Path, noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(foreign, weights_only=True)
    checkpoint["config"]["data"]["dataset"]["class_path"] = "my_data.Pictures"
    torch.save(checkpoint, tmp_path / "a.ckpt")
    own = ["--ckpt_path", str(tmp_path / "a.ckpt"), "--output_dir", str(tmp_path)]
    main(["predict", *own, "--images", str(noise), "--output", str(tmp_path / "o")])
    words = ["validate", *own]
    with pytest.warns(UserWarning, match="no loss is computed"):
        main([*words, *options(noise)])
    assert [path.name for path in tmp_path.glob("*/result_*.json")] == ["result_validate.json"]
    capsys.readouterr()
    with pytest.raises(ValueError, match="data.dataset is required"):
        main(words)
    assert "Left out: my_data.Pictures is no class of deeplab_lightning, torch, " in capsys.readouterr().out


@pytest.mark.long
def test_modules_of_the_working_folder_are_found_in_evaluation(foreign: Path) -> None:
    folder = foreign.parents[3]
    done = program("validate", "--ckpt_path", str(foreign), "--trust", folder=folder)
    assert done.returncode == 0, done.stderr
    assert '"loss": null' not in (foreign.parents[1] / "result_validate.json").read_text()


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_a_changed_byte_in_a_checkpoint_is_an_error(tmp_path: Path, position: float) -> None:
    """It loaded, and the weights were others."""
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(10_000)}}, path)
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ckpt is damaged: the checksum of .* is wrong"):
        read_checkpoint(path)


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000_000)
    with pytest.raises(UserError, match="its content is compressed"):
        read_checkpoint(tmp_path / "x.ckpt")
