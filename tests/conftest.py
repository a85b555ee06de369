"""Tiny data sets made on the spot, and a cache of the tests' own."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ("sky", "road", "car")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.environ["DEEPLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["DEEPLAB_CACHE"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real data sets, where they are: `$DEEPLAB_DATA`, or `shared/data` beside the checkout."""
    folder = Path(os.environ.get("DEEPLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set DEEPLAB_DATA")
    return folder


def write_image(path: Path, size: tuple[int, int] = (48, 64), seed: int = 0) -> None:
    """A picture of noise of (height, width) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_mask(path: Path, mask: "np.ndarray[Any, Any]", *, has_palette: bool = False) -> None:
    """An index mask, or one with a palette as VOC has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    if has_palette:
        picture.putpalette(list(range(256)) * 3)
    picture.save(path)


def draw_noise_data(folder: Path) -> None:
    """Ten pictures of 48x64 with masks of the values 0, 1, 2 and 11 (void)."""
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


@pytest.fixture
def mask_folder(tmp_path: Path) -> Path:
    """The data of `draw_noise_data` in a temporary folder."""
    draw_noise_data(tmp_path)
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., Path]:
    """Writes a COCO JSON with its pictures: coco(annotations, categories=..., images=...) -> path of the JSON."""

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
