"""Write tiny data sets, and use a separate cache for the tests."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from deeplab_lightning.data.image_cache import available_memory
from tests.processes import run_program

CLASSES = ("sky", "road", "car")
_WORKER_BYTES = 3e9  # of a test process and the trainings that it starts


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run two test processes per core as far as the memory lasts, since tests of commands wait half of their time.

    With `-n logical` one, for tests that do not wait.
    """
    per_core = 1 if config.option.numprocesses == "logical" else 2
    return max(1, min(per_core * (os.cpu_count() or 1), int(available_memory() / _WORKER_BYTES)))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.environ["DEEPLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["DEEPLAB_CACHE"]


@pytest.fixture(autouse=True, scope="session")
def _own_scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have all temporary folders, also those of killed processes, where pytest removes them."""
    get_temp_dir()  # of this process, which multiprocessing removes at the very end
    before, tempfile.tempdir = tempfile.gettempdir(), str(tmp_path_factory.mktemp("scratch"))
    os.environ["TMPDIR"] = tempfile.tempdir
    yield
    del os.environ["TMPDIR"]
    tempfile.tempdir = before


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data sets: `$DEEPLAB_DATA`, or `shared/data` in the checkout's parent folder."""
    folder = Path(os.environ.get("DEEPLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set DEEPLAB_DATA")
    return folder


def shared_folder(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder that the first test process fills, for what takes minutes to make; the others wait for it.

    Args:
        factory: Pytest's own.
        name: Name of the folder.
        fill: Fills the empty folder.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.with_suffix(".filled").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(folder)
            folder.with_suffix(".filled").touch()
    return folder


def shared_copy(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """Return a copy of `shared_folder` for this test process, which may write to it."""
    source = shared_folder(factory, name, fill)
    return Path(shutil.copytree(source, factory.mktemp(name) / "copy"))


def write_image(path: Path, size: tuple[int, int] = (48, 64), seed: int = 0) -> None:
    """Write an image of noise of (height, width) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_mask(path: Path, mask: "np.ndarray[Any, Any]", *, has_palette: bool = False) -> None:
    """Write an index mask, or one with a palette like those of VOC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if has_palette:
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def draw_noise_data(folder: Path) -> None:
    """Write ten images of 48x64 with masks of the values 0, 1, 2 and 11 (void)."""
    rng = np.random.default_rng(0)
    for index in range(10):
        write_image(folder / "images" / f"{index:02d}.png", seed=index)
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[24:] = 1
        mask[:, :4] = 11
        if index % 3 == 0:
            top, left = rng.integers(0, 30), rng.integers(4, 50)
            mask[top : top + 12, left : left + 12] = 2
        write_mask(folder / "masks" / f"{index:02d}.png", mask)


def noise_config(
    folder: Path, *, trainer: Mapping[str, Any], net: Mapping[str, Any] = {}, data: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Return the configuration of a small training on the data of `draw_noise_data`, in seconds on a CPU."""
    dataset = {"root": str(folder), "images": "images", "masks": "masks"}
    classes = {"names": list(CLASSES), "ignore_ids": [11]}
    of_net = {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False, **net}
    return {
        "wandb": "disabled",
        "output_dir": str(folder / "runs"),
        "trainer": {"accelerator": "cpu", **trainer},
        "model": {"net": {"class_path": "DeepLabV3", "init_args": of_net}},
        "data": {
            "dataset": {"class_path": "MaskFolderDataset", "init_args": {**dataset, "classes": classes}},
            "n_folds": 2,
            "batch_size": 2,
            "num_workers": 0,
            "train_transforms": {
                "class_path": "deeplab_lightning.data.TrainTransforms",
                "init_args": {"crop_size": 32},
            },
            **data,
        },
    }


def train_noise_experiment(folder: Path, name: str = "cv", *, epochs: int = 15, rate: float = 0.005) -> None:
    """Train an experiment of two folds on the data of `draw_noise_data` by the real command, as `<name>.yaml` says."""
    config = noise_config(folder, trainer={"max_epochs": epochs, "num_sanity_val_steps": 0})
    config["model"]["optimizer"] = {"class_path": "AdamW", "init_args": {"lr": rate}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    run_program("kfold", "-c", str(folder / f"{name}.yaml"), "--name", name, check=True)


@pytest.fixture
def mask_folder(tmp_path: Path) -> Path:
    """Write the data of `draw_noise_data` to a temporary folder."""
    draw_noise_data(tmp_path)
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a COCO JSON file and its images, and returns the path of the JSON file."""

    def write(
        annotations: list[dict[str, Any]],
        *,
        categories: list[dict[str, Any]] | None = None,
        images: list[dict[str, Any]] | None = None,
        has_files: bool = True,
    ) -> Path:
        images = images if images is not None else [{"id": 1, "file_name": "a.png", "height": 8, "width": 10}]
        categories = categories or [{"id": 1, "name": "can"}, {"id": 2, "name": "bag"}]
        for image in images if has_files else []:
            write_image(tmp_path / image["file_name"], (image["height"], image["width"]))
        full = [{"id": i, "image_id": 1, "iscrowd": 0, **a} for i, a in enumerate(annotations, start=1)]
        path = tmp_path / "coco.json"
        path.write_text(json.dumps({"images": images, "annotations": full, "categories": categories}))
        return path

    return write
