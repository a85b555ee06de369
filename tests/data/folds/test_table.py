from pathlib import Path

import pytest

from deeplab_lightning.data.folds.table import FoldTable
from deeplab_lightning.errors import DataError

NAMES = ["a.png", "b.png", "c.png"]
TABLE = FoldTable({"a.png": 0, "b.png": 1, "c.png": 0}, {"a.png": "x", "b.png": "y", "c.png": "x"})


def test_a_written_table_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(TABLE.to_csv())
    assert path.read_text().splitlines() == ["image,group,fold", "a.png,x,0", "b.png,y,1", "c.png,x,0"]
    assert FoldTable.read(path, NAMES, 2) == TABLE


@pytest.mark.parametrize(
    ("text", "names", "n_folds", "message"),
    [
        (TABLE.to_csv(), [*NAMES, "d.png"], 2, r"1 images of the data set are missing \(d.png\)"),
        (TABLE.to_csv(), NAMES[:1], 2, r"2 images are not in the data set \(b.png, c.png\)"),
        (TABLE.to_csv(), NAMES, 5, r"holds the folds \[0, 1\], but data.n_folds is 5"),
        ("image,group,fold\na.png,,train\nb.png,,val\nc.png,,val\n", NAMES, 2, "Set split: official"),
        (
            "file,part\na.png,0\n",
            NAMES,
            2,
            r"must have rows with the columns image, group and fold, got \['file', 'part'\]",
        ),
    ],
)
def test_a_table_of_other_data_is_an_error(
    tmp_path: Path, text: str, names: list[str], n_folds: int, message: str
) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        FoldTable.read(path, names, n_folds)


def test_the_file_may_hold_dropped_images_and_no_image_twice(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(TABLE.to_csv())
    assert FoldTable.read(path, NAMES[:2], 2, dropped=["c.png"]).folds == {"a.png": 0, "b.png": 1}
    path.write_text(TABLE.to_csv() + "a.png,x,1\n")
    with pytest.raises(DataError, match=r"lists 1 images more than once \(a.png; a.png in the lines 2, 5\)"):
        FoldTable.read(path, NAMES, 2)


def test_a_table_that_separates_groups_is_an_error() -> None:
    assert TABLE.with_groups({"a.png": "p", "b.png": "q", "c.png": "p"}).groups["c.png"] == "p"
    with pytest.raises(DataError, match=r"separates 1 groups of data.groups \(p\)"):
        TABLE.with_groups({"a.png": "p", "b.png": "p", "c.png": "q"})


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such fold file"):
        FoldTable.read(tmp_path / "folds.csv", NAMES, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,group,fold\na,,0\nb,,1\na,,1\n", r"lists 1 images more than once \(a; a in the lines 2, 4\)"),
        ("image,group,fold\na,,0\nb,,x\n", r"a fold must be a number from 0 to 1, got x"),
        ("image,group,fold\na,,0\nb,,1.5\n", r"a fold must be a number from 0 to 1, got 1.5"),
        ("image,group,fold\na,,0\nb\n", r"a fold must be a number from 0 to 1, got None"),
        ("image,group,fold\na,,train\nb,,val\n", r"holds the parts of an official split"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "folds.csv").write_text(text, encoding="utf-8-sig")
    with pytest.raises(DataError, match=message):
        FoldTable.read(tmp_path / "folds.csv", ["a", "b"], 2)
