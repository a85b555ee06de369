"""Files of competitions, decoded by the rules that their organisers publish."""

import csv
import io
import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle_tools

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.inference.outputs import CocoPart, CsvPart, Outputs, coco_text, csv_parts, run_lengths

CLASSES = ClassTable(["background", "bottle", "can"])
Mask = npt.NDArray[np.uint8]


def kaggle_decoded(text: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode as the notebooks of Kaggle do: pairs of start, from 1, and length, on the transposed mask."""
    numbers = list(map(int, text.split()))
    pixels = np.zeros(size[0] * size[1], dtype=bool)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        assert length > 0
        pixels[start - 1 : start - 1 + length] = True
    return pixels.reshape(size[::-1]).T


def test_runs_are_counted_from_one_and_column_by_column() -> None:
    assert run_lengths(np.array([[1, 0, 0], [1, 0, 1]], dtype=bool)) == "1 2 6 1"
    assert run_lengths(np.zeros((2, 3), dtype=bool)) == ""
    assert run_lengths(np.ones((2, 3), dtype=bool)) == "1 6"


@settings(max_examples=50, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_runs_decode_to_the_mask(is_class: npt.NDArray[np.bool_]) -> None:
    size = (is_class.shape[0], is_class.shape[1])
    assert np.array_equal(kaggle_decoded(run_lengths(is_class), size), is_class)


def test_there_is_one_row_of_runs_per_class_without_the_background() -> None:
    mask = np.array([[0, 1], [0, 1]], dtype=np.uint8)
    outputs = Outputs(csv="a.csv", csv_format="rle")
    assert outputs.csv_rows("a.png", mask, CLASSES) == [["a.png", 1, "3 2"], ["a.png", 2, ""]]
    others = ClassTable(["sky", "road", "car"])
    assert [row[1] for row in outputs.csv_rows("a.png", mask, others)] == [0, 1, 2]


def test_ids_are_those_of_the_nearest_pixels_row_by_row() -> None:
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(3, axis=0).repeat(3, axis=1)
    [[name, text]] = Outputs(csv="a.csv", csv_size=4).csv_rows("b/a.jpg", mask, CLASSES)
    assert (name, text) == ("b/a.jpg", " ".join(map(str, range(16))))
    [[_, text]] = Outputs(csv="a.csv").csv_rows("a.jpg", mask, CLASSES)
    assert len(text.split()) == 256 * 256


def test_rows_are_in_the_order_of_the_images_and_read_as_csv() -> None:
    parts = [CsvPart.of(name, [[name, "0 1"]]) for name in ("b.png", 'a,"1".png')]
    text = b"".join(csv_parts(["image_id", "PredictionString"], parts)).decode()
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["image_id", "PredictionString"], ['a,"1".png', "0 1"], ["b.png", "0 1"]]


def test_coco_holds_each_class_of_an_image_once() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1], [2, 0, 0]], dtype=np.uint8)
    empty = np.zeros((2, 2), dtype=np.uint8)
    parts = [CocoPart.of("b.png", mask, CLASSES), CocoPart.of("a.png", empty, CLASSES)]
    found = json.loads(coco_text(parts, CLASSES))
    assert [(image["file_name"], image["height"], image["width"]) for image in found["images"]] == [
        ("a.png", 2, 2),
        ("b.png", 3, 3),
    ]
    assert found["categories"] == [{"id": 2, "name": "bottle"}, {"id": 3, "name": "can"}]
    bottle, can = found["annotations"]
    assert (bottle["image_id"], bottle["area"], bottle["bbox"]) == (2, 3, [1, 0, 2, 2])
    assert np.array_equal(rle_tools.decode(can["segmentation"]), mask == 2)


def test_options_of_a_csv_file_need_its_name() -> None:
    for outputs in (Outputs(csv_size=4), Outputs(csv_format="rle")):
        with pytest.raises(ValueError, match="--csv_size and --csv_format need the name of the file"):
            outputs.check()
