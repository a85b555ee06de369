import os
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab_lightning import SegmentationDataModule
from deeplab_lightning.data import image_cache
from deeplab_lightning.data.cache import cache_folder
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.data.image_cache import CacheMode, DecodedDataset
from deeplab_lightning.data.images import ImageFile
from deeplab_lightning.data.transforms import TrainTransforms
from deeplab_lightning.errors import DataError
from tests.data.test_datamodule import dataset


def batches(folder: Path, cache: CacheMode) -> list[torch.Tensor]:
    """Return all images and masks of the training and the validation loader."""
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
    """Convert half of the images to JPEG, which may be decoded at half size."""
    for path in sorted((mask_folder / "images").iterdir())[::2]:
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    return mask_folder


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_batches_are_the_same_as_from_the_files(jpeg_folder: Path, mode: CacheMode) -> None:
    plain, first, second = (batches(jpeg_folder, cache) for cache in ("none", mode, mode))
    assert len(plain) == len(first) == len(second) > 4
    for a, b, c in zip(plain, first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_changed_image_is_decoded_again(mask_folder: Path) -> None:
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


@pytest.mark.parametrize("kind", ["pixels", "mask"])
@pytest.mark.parametrize("damage", ["bit in the header", "bit in the array", "bit in the checksum", "short", "empty"])
def test_a_damaged_file_is_made_again(mask_folder: Path, kind: str, damage: str) -> None:
    plain, first = dataset(mask_folder), DecodedDataset(dataset(mask_folder), "disk")
    first.build()
    path = first._pixel_file(3) if kind == "pixels" else first._mask_file(3)
    whole = path.read_bytes()
    place = {"header": 30, "array": 1000, "checksum": len(whole) - 1}.get(damage.rpartition(" ")[2])
    changed = bytearray(whole)
    if place is not None:
        changed[place] ^= 8
    path.write_bytes({"short": whole[:500], "empty": b""}.get(damage, bytes(changed)))
    second = DecodedDataset(dataset(mask_folder), "disk")
    second.build()  # sees the sizes
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert torch.equal(second.read_image(3), plain.read_image(3))
        assert torch.equal(second.read_mask(3), plain.read_mask(3))
    expected = [] if place is None else [f"{path} is damaged and is made again."]
    assert [str(warning.message) for warning in told] == expected
    assert path.read_bytes() == whole


def test_the_size_is_known_before_it_is_built(mask_folder: Path) -> None:
    assert DecodedDataset(dataset(mask_folder), "ram").num_bytes == 10 * 4 * 48 * 64


def test_another_class_table_decodes_no_image_again(
    mask_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEPLAB_CACHE", str(tmp_path / "cache"))
    DecodedDataset(dataset(mask_folder), "disk").build()
    other = MaskFolderDataset(
        str(mask_folder),
        "images",
        masks="masks",
        classes=ClassTable(["sky", "ground"], raw_ids={0: 0, 1: 1, 2: 1}, ignore_ids=[11]),
    )
    monkeypatch.setattr(ImageFile, "pixels", lambda *_: pytest.fail("decoded an image"))
    cached = DecodedDataset(other, "disk")
    cached.build()
    assert cached.read_mask(0).unique().tolist() == other.read_mask(0).unique().tolist() == [0, 1, 255]
    kinds = [path.name.split(".", 1)[1] for path in (tmp_path / "cache" / "decoded").iterdir()]
    assert (kinds.count("pixels.npy"), kinds.count("mask.npy")) == (10, 20)


def test_sizes_come_from_the_headers(jpeg_folder: Path) -> None:
    plain = dataset(jpeg_folder)
    for path in jpeg_folder.glob("images/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    assert DecodedDataset(plain, "ram").num_bytes == 10 * 4 * 48 * 64


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_the_error_of_too_little_space_names_a_remedy(
    mask_folder: Path, tmp_path: Path, mode: Literal["ram", "disk"], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100))
    monkeypatch.setenv("DEEPLAB_CACHE", str(tmp_path / "cache"))
    memory = namedtuple("memory", "available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(121 * 1024))
    if mode == "ram":
        DecodedDataset(dataset(mask_folder), mode).build()  # 120 of 121 kB
    with pytest.raises(
        DataError, match=f"data.cache: {mode} needs 0.00 GB for 10 decoded images .* Set data.cache: none"
    ):
        DecodedDataset(dataset(mask_folder), mode, num_processes=2).build()
    monkeypatch.setenv("LOCAL_RANK", "1")  # only the first process checks
    if mode == "ram":
        DecodedDataset(dataset(mask_folder), mode, num_processes=2).build()


def test_available_memory_is_at_most_the_memory_of_the_system() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < image_cache.available_memory() <= total
