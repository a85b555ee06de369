import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from deeplab_lightning.data.datasets.segmentations import box_polygons, decode, segmentation_fault, to_rle

SIZE = (12, 9)
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


def runs_of(mask: "np.ndarray[Any, Any]") -> list[int]:
    """Count the runs of 0 and 1 column by column, the first of 0."""
    flat = mask.reshape(-1, order="F")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])
    return [0] * int(flat[0]) + np.diff(bounds).tolist()


def test_every_valid_rle_is_accepted_and_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(int(n) for n in rng.integers(1, 70, 2))
        mask = (rng.random(size) < rng.random()).astype(np.uint8)
        mask[: size[0] // 2] = rng.integers(2)  # long runs
        counts = rle_tools.encode(np.asfortranarray(mask))["counts"].decode()
        for found in (counts, runs_of(mask)):
            rle = {"size": list(size), "counts": found}
            assert segmentation_fault(rle, (size[0], size[1])) is None
            assert np.array_equal(decode(to_rle(rle, (size[0], size[1]))), mask)


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ({"size": [12, 9], "counts": [50, 20, 37]}, "cover 107 pixels, but the image has 12x9 = 108"),
        ({"size": [12, 9], "counts": [50, -20, 78]}, "negative run"),
        ({"size": [12, 9], "counts": [50, 20.5, 37.5]}, "neither whole numbers nor text"),
        ({"size": [12, 9], "counts": [10**30, 1]}, "cover"),
        ({"size": [12, 9], "counts": None}, "neither whole numbers nor text"),
        ({"size": [12, 9], "counts": "garbage \x01"}, "not the text of a compressed RLE"),
        ({"size": [12, 9], "counts": "PPPPPPPPPPPPPPPPPPP"}, "not the text of a compressed RLE"),
        ({"size": [12, 9], "counts": ""}, "not the text of a compressed RLE"),
        ({"size": None, "counts": "1"}, "an RLE for an image of None"),
        ({"counts": [108]}, "without counts or size"),
        ([[1, 1, 5, 1, 5, float("nan")]], "not finite"),
        ([[1, 1, 5, 1, float("inf"), 2]], r"not finite \(inf\)"),
        ([[1, 1, 5, 1, 1e30, 2]], "far outside an image of 12x9"),
        ([[1, 1, 5, 1, 10**400, 2]], "far outside"),
        ([[1, 1, 5, 1, "5", 2]], r"coordinate '5' \(str\), which is not a number"),
        ([[1, 1, 5, 1, None, 2]], r"coordinate None \(NoneType\)"),
        ([[1, 1, 5, 1, True, 2]], r"coordinate True \(bool\)"),
        ([1, 1, 5, 1, 5, 2], "neither polygons nor RLE"),
        ("polygon", "no segmentation"),
        (None, "no segmentation"),
    ],
)
def test_what_pycocotools_cannot_stand_is_described(segmentation: Any, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(segmentation_fault(segmentation, SIZE))


def test_damaged_text_never_reaches_pycocotools() -> None:
    """Random changes of a valid text are refused, or fill the image exactly."""
    rng = np.random.default_rng(1)
    mask = (rng.random(SIZE) < 0.3).astype(np.uint8)
    text = rle_tools.encode(np.asfortranarray(mask))["counts"].decode()
    accepted = 0
    for _ in range(2000):
        letters = list(text)
        for _ in range(rng.integers(1, 4)):
            letters[rng.integers(len(letters))] = chr(int(rng.integers(1, 128)))
        rle = json.loads(json.dumps({"size": list(SIZE), "counts": "".join(letters[: rng.integers(1, len(text) + 1)])}))
        if segmentation_fault(rle, SIZE) is None:
            accepted += 1
            drawn = decode(to_rle(rle, SIZE))
            assert sum(runs_of(drawn.astype(np.uint8))) == mask.size
    assert accepted < 200


def test_boxes_become_polygons_within_the_image() -> None:
    assert box_polygons([-2, 3, 5, 100], SIZE) == [[0, 3, 3, 3, 3, 12, 0, 12]]
    for wrong in (None, [1, 2, 3], [1, 2, 0, 4], [20, 20, 3, 3], ["1", 2, 3, 4], [1, 2, float("nan"), 4]):
        assert box_polygons(wrong, SIZE) is None
