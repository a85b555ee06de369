import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.errors import DataError
from tests.conftest import CLASSES, write_image, write_mask

TABLE = ClassTable(CLASSES, ignore_ids=[11])


def build(folder: Path, **arguments: object) -> MaskFolderDataset:
    return MaskFolderDataset(str(folder), "images", masks="masks", classes=TABLE, **arguments)  # type: ignore[arg-type]


def test_pairs_are_sorted_and_uint8(mask_folder: Path) -> None:
    dataset = build(mask_folder)
    sample = dataset[3]
    assert dataset.names == [f"{i:02d}.png" for i in range(10)]
    assert (sample.image.dtype, sample.image.shape) == (torch.uint8, (3, 48, 64))
    assert sample.mask is not None
    assert (sample.mask.dtype, sample.mask.shape) == (torch.uint8, (48, 64))
    assert set(sample.mask.unique().tolist()) == {0, 1, 2, 255}


def test_a_data_set_can_be_pickled(mask_folder: Path) -> None:
    dataset = pickle.loads(pickle.dumps(build(mask_folder)))
    assert torch.equal(dataset[0].mask, build(mask_folder)[0].mask)  # type: ignore[arg-type]


def test_palette_masks_give_their_indices(mask_folder: Path) -> None:
    before = build(mask_folder).read_mask(0)
    raw = np.where(before.numpy() == 255, 11, before.numpy()).astype(np.uint8)
    write_mask(mask_folder / "masks" / "00.png", raw, has_palette=True)
    assert build(mask_folder).read_mask(0).equal(before)


def test_suffixes_pair_as_in_cityscapes(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "ulm" / "ulm_1_leftImg8bit.png")
    write_mask(tmp_path / "masks" / "ulm" / "ulm_1_gtFine_labelIds.png", np.zeros((48, 64), dtype=np.uint8))
    dataset = build(tmp_path, image_suffix="_leftImg8bit.png", mask_suffix="_gtFine_labelIds.png")
    assert dataset.names == ["ulm/ulm_1_leftImg8bit.png"]


def test_list_files_of_one_and_two_columns(mask_folder: Path) -> None:
    (mask_folder / "voc.txt").write_text("07\n03\n")
    (mask_folder / "pairs.txt").write_text("images/05.png /masks/05.png\n")
    assert build(mask_folder, list_file="voc.txt").names == ["03.png", "07.png"]
    assert build(mask_folder, list_file="pairs.txt").names == ["images/05.png"]


def test_only_blanks_and_newlines_separate_the_entries_of_a_list(mask_folder: Path) -> None:
    name = "a\u2028b\x0bc\x85d\xa0e"
    for part in ("images", "masks"):
        (mask_folder / part / "07.png").rename(mask_folder / part / f"{name}.png")
    (mask_folder / "voc.txt").write_bytes(f"\ufeff{name}\r\n 03\t\r\n".encode())  # as Windows writes it
    (mask_folder / "pairs.txt").write_text(f"images/{name}.png \tmasks/{name}.png\n", encoding="utf-8")
    assert build(mask_folder, list_file="voc.txt").names == ["03.png", f"{name}.png"]
    assert build(mask_folder, list_file="pairs.txt").names == [f"images/{name}.png"]


def test_missing_mask_is_named(mask_folder: Path) -> None:
    (mask_folder / "masks" / "04.png").unlink()
    with pytest.raises(DataError, match=r"images/04.png: its mask .*masks/04.png does not exist"):
        build(mask_folder)


def test_listed_image_that_is_missing_is_named(mask_folder: Path) -> None:
    (mask_folder / "list.txt").write_text("00\n99\n")
    with pytest.raises(DataError, match=r"99.jpg: no such image"):
        build(mask_folder, list_file="list.txt")


def test_image_and_mask_of_different_size_are_named(mask_folder: Path) -> None:
    write_image(mask_folder / "images" / "02.png", (48, 60))
    with pytest.raises(DataError, match=r"02.png: the image is 48x60 .* but its mask .*02.png is 48x64"):
        build(mask_folder)


def test_unreadable_header_is_named(mask_folder: Path) -> None:
    (mask_folder / "images" / "06.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"06.png: cannot be decoded"):
        build(mask_folder)


def test_truncated_image_is_found_before_training(mask_folder: Path) -> None:
    (mask_folder / "images" / "06.png").unlink()
    path = mask_folder / "images" / "06.jpg"
    write_image(path)
    path.write_bytes(path.read_bytes()[:-500])
    dataset = build(mask_folder)  # the header is whole
    with pytest.raises(DataError, match=r"06.jpg: cannot be decoded"):
        dataset.report(scan_dataset(dataset).problems)


def test_unknown_values_are_listed_with_their_files(mask_folder: Path) -> None:
    for name in ("01.png", "08.png"):
        write_mask(mask_folder / "masks" / name, np.full((48, 64), 7, dtype=np.uint8))
    dataset = build(mask_folder)
    with pytest.raises(DataError, match=r"masks/01.png, .*masks/08.png: mask values \[7\] are not in the class table"):
        dataset.report(scan_dataset(dataset).problems)


def test_photographs_as_masks_are_refused(mask_folder: Path) -> None:
    write_image(mask_folder / "masks" / "01.png")
    dataset = build(mask_folder)
    with pytest.raises(DataError, match=r"01.png: holds 3072 colours \(R, G, B\) that are not in classes.colors"):
        dataset.report(scan_dataset(dataset).problems)


def test_skip_drops_the_image_and_keeps_the_rest(mask_folder: Path) -> None:
    (mask_folder / "masks" / "04.png").unlink()
    dataset = build(mask_folder, on_error="skip")
    assert len(dataset) == 9
    assert "04.png" not in dataset.names
    assert len(dataset.problems) == 1


def test_no_image_is_an_error(mask_folder: Path) -> None:
    with pytest.raises(DataError, match="no image found"):
        build(mask_folder, image_suffix="_leftImg8bit.png")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder: .*images"):
        build(tmp_path)
