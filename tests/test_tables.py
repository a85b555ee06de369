from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_lightning.errors import DataError
from deeplab_lightning.files import write_text
from deeplab_lightning.tables import csv_text, read_csv, read_csv_text, read_rows

FORMULAS = ["=1+1", "+a", "-b.png", "@SUM(A1)", "\tx", "'=x", "''=x"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_is_a_formula_and_names_come_back(tmp_path: Path, name: str) -> None:
    text = csv_text([["image", name], [name, 3]])
    write_text(tmp_path / "a.csv", text)
    assert not [cell for line in text.splitlines() for cell in line.split(",") if cell.strip('"')[0] in "=+-@\t"]
    assert read_rows(tmp_path / "a.csv") == [["image", name], [name, "3"]]
    assert read_csv_text(csv_text([["image"], [name]])) == [{"image": name}]


def test_numbers_stay_numbers() -> None:
    assert csv_text([["-0.5", -0.5, "+1e5", "-3", "'a", "a=1"]]) == "-0.5,-0.5,+1e5,-3,'a,a=1\n"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=4))
def test_all_texts_come_back(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.csv"
    write_text(path, csv_text([["a"], cells]))
    assert read_rows(path) == [["a"], cells]


@pytest.mark.parametrize("content", [b"a,b\n\xff,1\n", b"a,b\n1,2\n3\n", b"a\n1\n", b"a,b\n" + b"x" * 200_000])
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path / 'a.csv'}: is damaged"):
        read_csv(tmp_path / "a.csv", ("a", "b"))
