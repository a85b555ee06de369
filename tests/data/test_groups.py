import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_lightning import stratified_folds
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.data.groups import DuplicateGroups, PatternGroups, TableGroups, _linked_components
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.errors import DataError
from tests.conftest import CLASSES

CAMVID = tuple(f"class {index}" for index in range(11))


@pytest.fixture
def frames(mask_folder: Path) -> MaskFolderDataset:
    """Ten frames of two sequences: a_0 .. a_6 and b_0 .. b_2."""
    for part in ("images", "masks"):
        for index in range(10):
            sequence, number = ("a", index) if index < 7 else ("b", index - 7)
            (mask_folder / part / f"{index:02d}.png").rename(mask_folder / part / f"{sequence}_{number}.png")
    return MaskFolderDataset(str(mask_folder), "images", masks="masks", classes=ClassTable(CLASSES, ignore_ids=[11]))


def test_a_pattern_labels_by_its_first_group_or_whole_match(frames: MaskFolderDataset) -> None:
    assert PatternGroups("^(.*?)_").labels(frames) == ["a"] * 7 + ["b"] * 3
    assert PatternGroups("^[ab]").labels(frames) == ["a"] * 7 + ["b"] * 3


def test_chunks_are_neighbours_of_one_group(frames: MaskFolderDataset) -> None:
    labels = PatternGroups("^(.*?)_", chunk_size=3).labels(frames)
    assert labels == ["a-0000"] * 3 + ["a-0001"] * 3 + ["a-0002"] + ["b-0000"] * 3


def test_chunks_follow_the_numbers_in_file_names(mask_folder: Path) -> None:
    for part in ("images", "masks"):
        for index in range(10):
            (mask_folder / part / f"{index:02d}.png").rename(mask_folder / part / f"a_{index + 1}.png")
    dataset = MaskFolderDataset(str(mask_folder), "images", masks="masks", classes=ClassTable(CLASSES, ignore_ids=[11]))
    labels = dict(zip(dataset.names, PatternGroups("^(.)_", chunk_size=5).labels(dataset), strict=True))
    assert {name for name, label in labels.items() if label == "a-0000"} == {f"a_{n}.png" for n in range(1, 6)}
    with pytest.raises(DataError, match="does not match"):
        PatternGroups("^a_(x)?").labels(dataset)


def test_errors_of_invalid_patterns_name_the_fault(frames: MaskFolderDataset) -> None:
    with pytest.raises(DataError, match=r"'\^b', does not match a_0.png"):
        PatternGroups("^b").labels(frames)
    with pytest.raises(ValueError, match=r"must be a regular expression, got '\('"):
        PatternGroups("(")
    with pytest.raises(ValueError, match="chunk_size must be at least 1 or null, got 0"):
        PatternGroups("a", 0)


def test_a_table_gives_the_labels(frames: MaskFolderDataset, tmp_path: Path) -> None:
    table = tmp_path / "sites.csv"
    rows = [f"{name},site{index % 4}" for index, name in enumerate(frames.names)]
    table.write_text("\n".join(["file,site", *reversed(rows)]))
    groups = TableGroups(str(table), image_column="file", group_column="site")
    assert groups.labels(frames) == [f"site{index % 4}" for index in range(10)]
    with pytest.raises(DataError, match=r"no rows with the column 'image'; its columns are \['file', 'site'\]"):
        TableGroups(str(table)).labels(frames)
    table.write_text("\n".join(["file,site", *rows[1:]]))
    with pytest.raises(DataError, match=r"no group for 1 of 10 images \(a_0.png\)"):
        groups.labels(frames)
    with pytest.raises(FileNotFoundError, match="no such table of groups"):
        TableGroups(str(tmp_path / "none.csv")).labels(frames)


def test_near_duplicates_share_a_label(frames: MaskFolderDataset) -> None:
    blots = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(blots).resize((320, 240), Image.Resampling.BICUBIC)
    image.resize((64, 48)).save(frames.paths[2])
    image.resize((128, 96)).resize((64, 48)).point(lambda v: v * 0.9 + 10).save(frames.paths[8])
    labels = DuplicateGroups().labels(frames)
    assert labels[2] == labels[8] == "a_2.png"
    assert len(set(labels)) == 9
    shutil.copy(frames.paths[0], frames.paths[5])  # a file that changed is hashed again
    os.utime(frames.paths[5], ns=(1, 1))
    again = DuplicateGroups().labels(frames)
    assert again[5] == "a_0.png"
    assert len(set(again)) == 8
    with pytest.raises(ValueError, match=r"in \[0, 12\], got 13"):
        DuplicateGroups(13)


@pytest.mark.parametrize("distance", [0, 3, 6, 12])
def test_linked_hashes_are_those_of_comparing_all_pairs(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**63, 60).astype(np.uint64)
    for index in range(20, 60):  # flip a few bits of an earlier one
        flips = rng.choice(64, rng.integers(0, 15), replace=False)
        hashes[index] = hashes[rng.integers(0, index)] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    expected = np.arange(60)
    for _ in range(60):  # labels spread along linked pairs
        for one in range(60):
            is_linked = np.bitwise_count(hashes ^ hashes[one]) <= distance
            expected[is_linked] = expected[is_linked].min()
    found = _linked_components(hashes, distance)
    assert np.array_equal(found[:, None] == found, expected[:, None] == expected)
    assert len(set(found.tolist())) < 60


@pytest.mark.long
def test_groups_prevent_leaks_between_the_folds_of_camvid(real_data: Path) -> None:
    if not (real_data / "camvid").is_dir():
        pytest.skip(f"no CamVid in {real_data}")
    dataset = MaskFolderDataset(
        str(real_data / "camvid"), "train", masks="trainannot", classes=ClassTable(CAMVID, ignore_ids=[11])
    )
    statistics = scan_dataset(dataset, is_quiet=True)
    labels = PatternGroups("^(.*?)_").labels(dataset)
    together = np.array([one == other for one, other in pairwise(labels)])
    assert together.mean() > 0.9  # names are sorted: neighbours in the list are neighbours in the video

    def separated(groups: list[str] | None) -> float:
        folds = stratified_folds(statistics.objects, statistics.areas, 2, groups=groups)
        return float((folds[1:] != folds[:-1])[together].mean())

    assert separated(None) > 0.4
    assert separated(labels) == 0
    chunks = PatternGroups("^(.*?)_", chunk_size=30).labels(dataset)
    assert 0 < separated(chunks) < 0.05
