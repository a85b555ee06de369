import os
from pathlib import Path

import numpy as np
import pytest

from deeplab_lightning.data.cache import cache_folder
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.data.datasets.base import MaskFacts
from deeplab_lightning.data.digest import is_other_data
from deeplab_lightning.data.scan import scan_dataset
from tests.conftest import CLASSES


@pytest.fixture
def dataset(mask_folder: Path) -> MaskFolderDataset:
    return MaskFolderDataset(str(mask_folder), "images", masks="masks", classes=ClassTable(CLASSES, ignore_ids=[11]))


def test_pixels_are_counted_without_void(dataset: MaskFolderDataset) -> None:
    pixels = scan_dataset(dataset).pixels
    for index in range(len(dataset)):
        mask = dataset.read_mask(index).numpy()
        assert pixels[index].tolist() == [int((mask == k).sum()) for k in range(3)]


def test_objects_are_regions_of_at_least_50_pixels(dataset: MaskFolderDataset) -> None:
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[:7, :7] = 1  # 49 pixels
    mask[10:17, 10:17], mask[17:20, 17:20] = 2, 2  # two squares that touch at a corner: one region
    mask[30:40, 30:40], mask[30:40, 45:55] = 2, 2
    mask[45:] = 255
    assert dataset.count_objects(0, mask).tolist() == [1, 0, 3]


def test_areas_are_fractions_of_the_image(dataset: MaskFolderDataset) -> None:
    statistics = scan_dataset(dataset)
    assert np.allclose(statistics.areas, statistics.pixels / (48 * 64))


def test_a_second_scan_reads_nothing(dataset: MaskFolderDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan_dataset(dataset)
    monkeypatch.setattr(dataset, "inspect_mask", lambda index: pytest.fail("read again"))
    assert np.array_equal(scan_dataset(dataset).pixels, first.pixels)


def test_touching_one_file_reads_that_file_only(dataset: MaskFolderDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    scan_dataset(dataset)
    os.utime(dataset.mask_paths[4], ns=(1, 1))
    seen: list[int] = []
    original = dataset.inspect_mask

    def inspect_mask(index: int) -> MaskFacts:
        seen.append(index)
        return original(index)

    monkeypatch.setattr(dataset, "inspect_mask", inspect_mask)
    scan_dataset(dataset)
    assert seen == [4]


def test_a_cache_that_cannot_be_written_only_warns(
    dataset: MaskFolderDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPLAB_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="Set DEEPLAB_CACHE"):
        assert scan_dataset(dataset).pixels.sum() > 0


def test_all_problems_are_found_at_once(dataset: MaskFolderDataset) -> None:
    dataset.paths[1].write_bytes(b"")
    dataset.mask_paths[2].write_bytes(b"")
    dataset.paths[3].unlink()
    assert {problem.images for problem in scan_dataset(dataset).problems} == {("01.png",), ("02.png",), ("03.png",)}


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_damaged_cache_is_made_again_with_a_word(dataset: MaskFolderDataset, length: int) -> None:
    """A truncated or empty file stopped every run on these data with BadZipFile or EOFError."""
    first = scan_dataset(dataset)
    [store] = [path for path in (cache_folder() / "scans").glob("*.npz") if path.stat().st_mtime_ns == newest()]
    content = bytearray(store.read_bytes())
    if length < 0:  # a single byte may be one that the format does not use
        middle = slice(len(content) // 2, len(content) // 2 + 200)
        content[middle] = bytes(byte ^ 255 for byte in content[middle])
    else:
        content = content[:length]
    store.write_bytes(content)
    with pytest.warns(UserWarning, match=r"\.npz is damaged .* and is made again"):
        again = scan_dataset(dataset)
    assert np.array_equal(again.pixels, first.pixels)
    assert scan_dataset(dataset).pixels.sum() > 0


def newest() -> int:
    return max(path.stat().st_mtime_ns for path in (cache_folder() / "scans").glob("*.npz"))


def test_digests_of_an_earlier_version_say_nothing_of_the_data() -> None:
    assert is_other_data("0123456789abcdef", "0123456789abcdee")
    assert not is_other_data("0123456789abcdef", "0123456789abcdef")
    assert not is_other_data("0123456789ab", "0123456789abcdef")  # it held the number of pixels of each class
    assert not is_other_data(None, "0123456789abcdef")
    assert not is_other_data("", "")
