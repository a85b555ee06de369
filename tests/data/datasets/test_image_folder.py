from pathlib import Path

import pytest

from deeplab_lightning.data.datasets import ImageFolderDataset
from deeplab_lightning.errors import DataError, UserError
from tests.conftest import write_image


def test_folders_files_and_lists_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "deep" / "1.png")
    write_image(tmp_path / "2.png")
    write_image(tmp_path / "3.png")
    (tmp_path / "list.txt").write_text("3.png\n")
    dataset = ImageFolderDataset([str(tmp_path / "a"), str(tmp_path / "2.png"), str(tmp_path / "list.txt")])
    assert dataset.names == ["2.png", "3.png", "deep/1.png"]
    assert dataset[0].mask is None


def test_a_list_has_one_image_per_line_whatever_it_is_called(tmp_path: Path) -> None:
    names = ["a b.png", "c\u2028d\x0be\x85f.png"]
    for name in names:
        write_image(tmp_path / name)
    (tmp_path / "list.txt").write_bytes("\ufeff{}\r\n\r\n{}\r\n".format(*names).encode())  # as Windows writes it
    assert ImageFolderDataset([str(tmp_path / "list.txt")]).names == names


def test_a_list_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("Behälter.png\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"list.txt: is not text in UTF-8 .*Save it as UTF-8"):
        ImageFolderDataset([str(tmp_path / "list.txt")])


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image found"):
        ImageFolderDataset([str(tmp_path)])


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image, folder or list: .*nowhere"):
        ImageFolderDataset([str(tmp_path / "nowhere")])


def test_a_file_that_is_not_an_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("text")
    dataset = ImageFolderDataset([str(tmp_path)])
    with pytest.raises(UserError, match=r"x.jpg: cannot be decoded"):
        dataset[0]


def test_names_that_begin_with_a_dot_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".cache/b.png"):
        write_image(tmp_path / name)
    assert ImageFolderDataset([str(tmp_path)]).names == ["a.png"]


def test_images_of_other_kinds_in_a_folder_are_left_out_with_a_warning(tmp_path: Path) -> None:
    for name in ("a.png", "b.GIF", "c.gif", "clip.mp4", "notes.txt"):
        write_image(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    with pytest.warns(UserWarning, match=r"files of other kinds are left out \(2 .gif, 1 .mp4\)"):
        assert ImageFolderDataset([str(tmp_path)]).names == ["a.png"]
