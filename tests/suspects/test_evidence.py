"""Regions of contradicted labels, on masks drawn by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplab_lightning.inference.out_of_fold import HeldOut
from deeplab_lightning.suspects.evidence import find_regions
from deeplab_lightning.suspects.ranking import rank

Mask = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def probabilities(predicted: Mask, *, confidence: float = 0.8) -> Tensor:
    """Give the predicted class of three this probability, and the others the same share of the rest."""
    found = torch.full((3, *predicted.shape), (1 - confidence) / 2)
    return found.scatter_(0, torch.from_numpy(predicted).long()[None], confidence)


def blank() -> Mask:
    return np.zeros((40, 50), dtype=np.uint8)


def test_a_missing_object_is_a_region_with_its_box_and_margin() -> None:
    mask, predicted = blank(), blank()
    predicted[10:20, 30:42] = 2
    [region], counts = find_regions(probabilities(predicted), mask, min_area=1)
    assert (region.label, region.predicted, region.area, region.box) == (0, 2, 120, (30, 10, 12, 10))
    assert np.array_equal(region.decode(), predicted == 2)
    assert region.margin == pytest.approx(0.7)
    assert region.core == pytest.approx(6 * 8 / (40 * 50))  # two pixels from each edge
    assert counts.tolist() == [[40 * 50 - 120, 0, 120], [0, 0, 0], [0, 0, 0]]


def test_a_thin_rim_is_no_region() -> None:
    """Objects that are predicted two pixels wider than they are labelled."""
    mask, predicted = blank(), blank()
    mask[12:28, 12:38] = 1
    predicted[10:30, 10:40] = 1
    assert find_regions(probabilities(predicted), mask, min_area=1)[0] == []


def test_pairs_of_classes_are_regions_of_their_own() -> None:
    mask, predicted = blank(), blank()
    mask[:, 25:] = predicted[:, 25:] = 1
    predicted[10:30, 15:35] = 2
    regions, _ = find_regions(probabilities(predicted), mask, min_area=1)
    assert sorted((own.label, own.predicted, own.area) for own in regions) == [(0, 2, 200), (1, 2, 200)]


def test_ignored_pixels_are_in_no_region_and_in_no_count() -> None:
    mask, predicted = blank(), blank()
    predicted[10:20, 30:42] = 2
    mask[:, 36:] = 255
    [region], counts = find_regions(probabilities(predicted), mask, min_area=1)
    assert region.area == 60
    assert counts.sum() == 40 * 36


def test_small_regions_are_left_out() -> None:
    mask, predicted = blank(), blank()
    predicted[10:20, 30:42] = 2
    assert find_regions(probabilities(predicted), mask, min_area=121)[0] == []


def test_classes_that_are_confused_anyway_come_last() -> None:
    """Class 1 is predicted as 2 in most images, and 0 as 2 in one alone: the same region is more suspicious there."""
    images = []
    for number in range(6):
        mask, predicted = blank(), blank()
        mask[5:15, 5:20] = 1
        mask[25:35, 5:20] = predicted[25:35, 5:20] = 2
        predicted[5:15, 5:20] = 1 if number == 5 else 2
        if number == 0:
            predicted[20:30, 30:45] = 2
        images.append(HeldOut(str(number), 0, mask, probabilities(predicted)))
    found = rank(images, limit=10, min_area=1)
    assert (found.suspects[0].region.label, found.suspects[0].region.predicted) == (0, 2)
    assert found.suspects[0].score > 3 * found.suspects[1].score
    assert found.images[0].image == "0"
    assert [own.image for own in found.images[-1:]] == ["5"]
    assert rank(images, limit=1, min_area=1).num_suspects == found.num_suspects
