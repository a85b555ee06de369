from pathlib import Path

import pytest

from deeplab_lightning.data.folder_index import FolderIndex


@pytest.fixture
def index(tmp_path: Path) -> FolderIndex:
    for name in ("a.png", "sub/b c.JPG", "sub/.hidden/x.png", "._a.png", ".DS_Store", "sub/Thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return FolderIndex(tmp_path)


def test_hidden_names_are_left_out_and_counted(index: FolderIndex) -> None:
    assert index.names == ["a.png", "sub/Thumbs.db", "sub/b c.JPG"]
    assert index.num_hidden == 3


def test_only_the_case_of_a_suffix_may_differ(index: FolderIndex) -> None:
    assert index.find("sub/b c.jpg") == "sub/b c.JPG"
    assert index.find("a.PNG") == "a.png"
    assert index.find("A.png") is None


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("A.PNG", "a.png"),
        ("upload/1/a.png", "a.png"),
        ("/data/train/sub/b%20c.jpg", "sub/b c.JPG"),
        ("sub\\b c.JPG", "sub/b c.JPG"),
        ("b c.JPG", "sub/b c.JPG"),
        ("z.png", None),
        ("", None),
    ],
)
def test_hints_name_the_file_that_was_meant(index: FolderIndex, wrong: str, right: str | None) -> None:
    assert index.hint(wrong) == ("" if right is None else f"The folder {index.folder} holds {right}.")
