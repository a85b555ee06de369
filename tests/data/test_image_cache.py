import os
from collections import namedtuple
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab_lightning import SegmentationDataModule
from deeplab_lightning.data.cache import cache_folder
from deeplab_lightning.data.image_cache import CacheMode, DecodedDataset
from deeplab_lightning.data.problems import DataError
from deeplab_lightning.data.transforms import TrainTransforms
from tests.data.test_datamodule import dataset


def batches(folder: Path, cache: CacheMode) -> list[torch.Tensor]:
    """All that the loaders give, training and validation."""
    module = SegmentationDataModule(
        dataset(folder), 3, batch_size=2, num_workers=0, train_transforms=TrainTransforms(32), cache=cache
    )
    module.prepare_data()
    module.setup("fit")
    tensors = []
    for batch in [*module.train_dataloader(), *(batch for part in module.val_dataloader() for batch in part)]:
        assert batch.mask is not None
        tensors += [batch.image, batch.mask]
    return tensors


@pytest.fixture
def jpeg_folder(mask_folder: Path) -> Path:
    """Half of the pictures as JPEG, which may be decoded at half size."""
    for path in sorted((mask_folder / "images").iterdir())[::2]:
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    return mask_folder


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_batches_are_those_of_the_files(jpeg_folder: Path, mode: CacheMode) -> None:
    plain, first, second = (batches(jpeg_folder, cache) for cache in ("none", mode, mode))
    assert len(plain) == len(first) == len(second) > 4
    for a, b, c in zip(plain, first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_changed_picture_is_decoded_again(mask_folder: Path) -> None:
    DecodedDataset(dataset(mask_folder), "disk").build()
    Image.fromarray(np.full((48, 64, 3), 7, dtype=np.uint8)).save(mask_folder / "images" / "03.png")
    cached = DecodedDataset(dataset(mask_folder), "disk")
    cached.build()
    assert cached.read_image(3).unique().tolist() == [7]


def test_a_second_build_writes_nothing(mask_folder: Path) -> None:
    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (cache_folder() / "decoded").iterdir()}

    DecodedDataset(dataset(mask_folder), "disk").build()
    before = written()
    DecodedDataset(dataset(mask_folder), "disk").build()
    assert written() == before


def test_the_size_is_known_before_it_is_built(mask_folder: Path) -> None:
    assert DecodedDataset(dataset(mask_folder), "ram").num_bytes == 10 * 4 * 48 * 64


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_too_little_space_says_what_to_do(
    mask_folder: Path, mode: Literal["ram", "disk"], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100))
    monkeypatch.setattr(os, "sysconf", lambda _: 10)
    with pytest.raises(DataError, match=f"data.cache: {mode} needs 0.00 GB for 10 decoded .* Set data.cache: none"):
        DecodedDataset(dataset(mask_folder), mode).build()
