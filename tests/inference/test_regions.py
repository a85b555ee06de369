"""The filter of small regions, against masks drawn by hand and against its promise on any mask."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deeplab_lightning.inference.regions import RegionFilter

NAMES = ["background", "bottle", "can"]
Mask = npt.NDArray[np.uint8]


def drawn(*rows: str) -> Mask:
    return np.array([list(map(int, row)) for row in rows], dtype=np.uint8)


def test_a_small_region_gets_the_class_of_its_longest_border() -> None:
    """The first class, or that of the nearest pixel, would be another one."""
    mask = drawn("00022", "01122", "01122", "00222")
    # Edges of the bottle: 2 above and 2 left to background, 1 below to it; 2 right, 1 below to can.
    assert np.array_equal(RegionFilter([0, 5, 0]).filtered(mask), drawn("00022", "00022", "00022", "00222"))
    mask = drawn("00222", "01122", "01122", "02222")
    assert np.array_equal(RegionFilter([0, 5, 0]).filtered(mask), drawn("00222", "02222", "02222", "02222"))


def test_a_region_as_large_as_the_area_stays() -> None:
    mask = drawn("0000", "0110", "0110", "0000")
    assert RegionFilter([0, 4, 0]).filtered(mask) is mask
    assert not RegionFilter([0, 5, 0]).filtered(mask).any()


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    mask = drawn("1000", "0100", "0010")
    assert RegionFilter([0, 3, 0]).filtered(mask) is mask


def test_small_regions_that_touch_are_one_hole() -> None:
    """One after the other, each would get the class of the other."""
    mask = drawn("00000", "01220", "00000")
    assert not RegionFilter([0, 9, 9]).filtered(mask).any()


def test_labels_stay_if_no_region_is_large_enough() -> None:
    mask = drawn("012", "120")
    assert RegionFilter([9, 9, 9]).filtered(mask) is mask


def test_only_the_named_classes_are_filtered() -> None:
    mask = drawn("00000", "01020", "00000")
    regions = RegionFilter.parse("can=2", NAMES)
    assert regions is not None
    assert np.array_equal(regions.filtered(mask), drawn("00000", "01000", "00000"))


def sizes(mask: Mask, train_id: int) -> list[int]:
    """Count the pixels of each region by walking through it."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask == train_id)}
    found = []
    while left:
        edge, size = [left.pop()], 0
        while edge:
            y, x = edge.pop()
            size += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(size)
    return found


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 2), elements=st.integers(0, 2)), st.integers(0, 9))
def test_no_smaller_region_is_left(mask: Mask, area: int) -> None:
    before = mask.copy()
    regions = RegionFilter([0, area, 2])
    after = regions.filtered(mask)
    assert np.array_equal(mask, before)
    has_small = min(sizes(mask, 1), default=area) < area or min(sizes(mask, 2), default=2) < 2
    if not has_small or not np.array_equal(after, mask):
        assert min(sizes(after, 1), default=area) >= area
        assert min(sizes(after, 2), default=2) >= 2
    assert np.array_equal(regions.filtered(after), after)
    assert torch.equal(regions(torch.from_numpy(mask)[None]), torch.from_numpy(after)[None])


@pytest.mark.parametrize(
    ("given", "areas"),
    [("64", [64, 64, 64]), (8, [8, 8, 8]), ("bottle=64, can=20", [0, 64, 20]), ({"can": 3}, [0, 0, 3])],
)
def test_areas_are_read(given: str, areas: list[int]) -> None:
    found = RegionFilter.parse(given, NAMES)
    assert found is not None
    assert found.areas == areas


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("many", "--min_area must be a number of pixels, such as 64, or one per class, such as can=64, got 'many'"),
        ("can=", "--min_area must be a number of pixels"),
        ("=4", "--min_area names no class ''"),
        ("glass=4", "--min_area names no class 'glass'. The classes are background, bottle, can"),
        ("-4", "--min_area must not be negative, got -4"),
    ],
)
def test_areas_that_cannot_be_used_are_named(given: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RegionFilter.parse(given, NAMES)
