"""Validate and predict trained networks by OpenVINO and ONNX Runtime with the real commands, beside PyTorch."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from deeplab_lightning import load
from deeplab_lightning.cli import main
from deeplab_lightning.runs import RunFolder
from tests.commands.pictures import draw_picture, draw_pictures
from tests.conftest import noise_config, shared_copy
from tests.processes import run_program

NETS: dict[str, tuple[str, float, dict[str, Any]]] = {  # class, learning rate, arguments
    "v1": ("DeepLabV1", 0.001, {"hidden_channels": 32, "aspp_channels": None}),
    "v2": ("DeepLabV2", 0.001, {"hidden_channels": 32, "scales": [0.75, 1.0], "aspp_channels": None}),
    "v3": ("DeepLabV3", 0.005, {}),
    "v3plus": ("DeepLabV3Plus", 0.005, {"backbone": "test_efficientnet", "separable": True}),
}
PRODUCTS = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """A trained network of each member, and a folder with images of three sizes, one of them odd."""
    root = shared_copy(tmp_path_factory, "engines", train_networks)
    return {name: RunFolder(root / "runs" / name) for name in NETS}


def train_networks(root: Path) -> None:
    draw_pictures(root)
    for index, size in enumerate([(48, 64), (97, 131), (150, 200)]):
        draw_picture(root / "new" / f"{index}.png", size, seed=index)
    for name, (kind, rate, arguments) in NETS.items():
        config = noise_config(
            root,
            trainer={"max_epochs": 6, "num_sanity_val_steps": 0, "enable_model_summary": False},
            net=arguments,
            data={"fold": 0, "eval_batch_size": 3},
        )
        net = config["model"]["net"]
        net["class_path"] = kind
        net["init_args"] = {key: value for key, value in net["init_args"].items() if value is not None}
        config["model"]["optimizer"] = {"class_path": "AdamW", "init_args": {"lr": rate}}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
        main(["fit", "-c", str(root / f"{name}.yaml"), "--name", name])


def validated(run: RunFolder, *words: str) -> dict[str, Any]:
    before = set(run.path.glob("result_validate*.json"))
    main(["validate", "--ckpt_path", str(run.best), *words])
    [new] = set(run.path.glob("result_validate*.json")) - before
    result: dict[str, Any] = json.loads(new.read_text())
    return result


def predicted(run: RunFolder, output: Path, *words: str) -> dict[str, npt.NDArray[np.uint8]]:
    images = str(run.path.parents[1] / "new")
    main(["predict", "--ckpt_path", str(run.best), "--images", images, "--output", str(output), *words])
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((output / "masks").glob("*.png"))}


def equal_share(one: dict[str, npt.NDArray[np.uint8]], other: dict[str, npt.NDArray[np.uint8]]) -> float:
    assert one.keys() == other.keys()
    return min(float((one[name] == other[name]).mean()) for name in one)


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_engines_find_the_labels_and_figures_of_torch(trained: dict[str, RunFolder], tmp_path: Path, name: str) -> None:
    """Also of images of several sizes in one folder. The record says what computed."""
    run = trained[name]
    plain, masks = validated(run), predicted(run, tmp_path / "torch")
    assert "engine" not in plain
    assert len({label for mask in masks.values() for label in np.unique(mask)}) > 1
    for engine in ("openvino", "onnx"):
        result = validated(run, "--engine", engine)
        assert result["engine"]["name"] == PRODUCTS[engine]
        assert result["engine"]["precision"] == "fp32"
        assert result["val"]["miou"] == pytest.approx(plain["val"]["miou"], abs=0.001)
        assert result["val"]["loss"] == pytest.approx(plain["val"]["loss"], rel=1e-4)
        assert equal_share(masks, predicted(run, tmp_path / engine, "--engine", engine)) >= 0.999


@pytest.mark.long
def test_folds_views_tiles_and_filters_work_over_an_engine(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    words = ("--ensemble", f"[{trained['v3plus'].best}]", "--tta", "flip", "--tile", "64", "--min_area", "20")
    masks = predicted(trained["v3"], tmp_path / "torch", *words)
    found = predicted(trained["v3"], tmp_path / "openvino", *words, "--engine", "openvino")
    assert equal_share(masks, found) >= 0.999
    alone = predicted(trained["v3"], tmp_path / "alone", "--engine", "openvino")
    assert equal_share(masks, alone) < 0.99  # so that this test can fail


@pytest.mark.long
def test_half_precision_follows_the_trainer(trained: dict[str, RunFolder]) -> None:
    plain = validated(trained["v3"], "--trainer.precision", "bf16-mixed")
    result = validated(trained["v3"], "--engine", "openvino", "--trainer.precision", "bf16-mixed")
    assert result["engine"]["precision"] in {"bf16", "fp32"}  # fp32 on a processor without it
    assert result["val"]["miou"] == pytest.approx(plain["val"]["miou"], abs=0.01)


@pytest.mark.long
def test_python_computes_by_an_engine(trained: dict[str, RunFolder]) -> None:
    images = trained["v3"].path.parents[1] / "new"
    plain, by_engine = (load(trained["v3"].best, tta="flip", engine=engine) for engine in ("torch", "openvino"))
    for name, expected in plain.predict(images).items():
        assert np.allclose(by_engine.predict(images / name).probabilities, expected.probabilities, atol=1e-4)
    with pytest.raises(ValueError, match="computes on the CPU alone, got the device cuda"):
        load(trained["v3"].best, engine="onnx", device="cuda")


@pytest.mark.long
def test_an_engine_reports_to_nobody(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    """The packages of OpenVINO write an identifier into the home folder, and report each import to a server."""
    images, home = str(trained["v3"].path.parents[1] / "new"), tmp_path / "home"
    home.mkdir()
    words = ("--ckpt_path", str(trained["v3"].best), "--images", images, "--output", str(tmp_path / "out"))
    environment = {**os.environ, "HOME": str(home), "CI": "false"}
    done = run_program("predict", *words, "--engine", "openvino", env=environment, check=True)
    assert "The network is computed by OpenVINO " in done.stdout + done.stderr
    assert list(home.rglob("*openvino*")) == []
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3


@pytest.mark.long
def test_an_engine_that_cannot_compute_is_one_line(trained: dict[str, RunFolder], tmp_path: Path) -> None:
    images = str(trained["v3"].path.parents[1] / "new")
    words = ("--ckpt_path", str(trained["v3"].best), "--images", images, "--output", str(tmp_path / "out"))
    for options, status, text in (
        (("--engine", "tensorrt"), 2, "engine: expected one of 'torch', 'openvino', 'onnx', got tensorrt"),
        (("--engine", "onnx", "--trainer.precision", "64-true"), 1, "takes trainer.precision 32-true, bf16-mixed"),
    ):
        done = run_program("predict", *words, *options)
        assert done.returncode == status
        assert text in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
