import numpy as np
import pytest

from deeplab_lightning.data.classes import ClassTable, voc_palette


def test_palette_is_the_one_of_voc() -> None:
    # The first colours as the VOC development kit documents them.
    assert voc_palette(6) == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]


def test_raw_ids_become_train_ids_and_void_is_255() -> None:
    table = ClassTable(["road", "car"], raw_ids={7: 0, 26: 1, 27: 1}, ignore_ids=[0, 255])
    mask, unknown = table.encode(np.array([[7, 26, 27, 0, 255]], dtype=np.uint8))
    assert mask.tolist() == [[0, 1, 1, 255, 255]]
    assert unknown == []


def test_unknown_raw_ids_are_listed_and_ignored() -> None:
    mask, unknown = ClassTable(["a", "b"]).encode(np.array([[0, 9, 1, 5]], dtype=np.uint8))
    assert unknown == [5, 9]
    assert mask.tolist() == [[0, 255, 1, 255]]


def test_sixteen_bit_masks_are_read() -> None:
    mask, unknown = ClassTable(["a"], raw_ids={1000: 0}).encode(np.array([[1000, 255]], dtype=np.uint16))
    assert (mask.tolist(), unknown) == ([[0, 255]], [])


def test_dict_round_trip() -> None:
    table = ClassTable(["a", "b"], [[1, 2, 3], [4, 5, 6]], {3: 0, 4: 1}, [0])
    assert ClassTable(**table.to_dict()) == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": []}, "1 to 253 names, got 0"),
        ({"names": ["a", "a"]}, "more than once: a"),
        ({"names": ["a"], "colors": []}, r"one \(R, G, B\)"),
        ({"names": ["a"], "raw_ids": {3: 1}}, r"train ids in \[0, 1\), got \{3: 1\}"),
        ({"names": ["a"], "raw_ids": {3: 0}, "ignore_ids": [3]}, r"raw ids \[3\] are both"),
    ],
)
def test_errors_of_invalid_tables_name_the_fault(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        ClassTable(**arguments)
