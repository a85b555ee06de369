import hashlib
from pathlib import Path

import pytest

from deeplab_lightning.data.datasets import SyntheticLitterDataset
from deeplab_lightning.data.datasets.synthetic import write_synthetic
from deeplab_lightning.errors import DataError


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_the_seed_decides_the_files(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_synthetic(tmp_path / name, num_images=3, size=64, seed=seed)
    digests = [digest(tmp_path / name / "images") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_scenes_hold_several_objects_of_eleven_long_tailed_classes(tmp_path: Path) -> None:
    dataset = SyntheticLitterDataset(str(tmp_path / "s"), num_images=150, size=32)
    counts = [0] * 11
    for objects in dataset.objects:
        for item in objects:
            counts[item.train_id] += 1
    names = dataset.classes.names
    assert names[0] == "background"
    assert len(names) == 11
    assert min(counts[1:]) > 0
    assert counts[names.index("paper")] > 3 * counts[names.index("battery")]
    several = [len({item.train_id for item in objects}) > 1 for objects in dataset.objects]
    assert sum(several) > 100


def test_the_mask_shows_the_object_that_was_drawn_last(tmp_path: Path) -> None:
    # Objects are drawn from the largest to the smallest, the order of the masks.
    dataset = SyntheticLitterDataset(str(tmp_path / "s"), num_images=20, size=64)
    assert any("overlap" in remark for remark in dataset.remarks())
    assert all(dataset[i].image.shape == (3, 64, 64) for i in range(20))


def test_a_folder_of_other_scenes_is_not_changed(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "s", num_images=2, size=32)
    with pytest.raises(DataError, match=r"holds .*'num_images': 2.* but .*'num_images': 3"):
        SyntheticLitterDataset(str(tmp_path / "s"), num_images=3, size=32)


def test_a_folder_of_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        write_synthetic(tmp_path, num_images=2, size=32)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
