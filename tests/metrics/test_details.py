"""Contours and objects by size, against counts by hand and by other definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from deeplab_lightning.errors import DataError
from deeplab_lightning.metrics.boundary import boundary_iou
from deeplab_lightning.metrics.details import image_details
from deeplab_lightning.metrics.per_image import ImageDetails, PerImageConfusion, PerImageDetails

FOUND, AREA, NUMBER = range(3)


def test_objects_are_counted_by_the_share_of_the_image() -> None:
    """Of 60x100 pixels, 1/300 are 20 and 3/100 are 180."""
    mask = torch.zeros(1, 60, 100, dtype=torch.uint8)
    mask[0, 2:6, 2:6] = 1  # 16 pixels
    mask[0, 10:14, 10:15] = 1  # 20, just medium
    mask[0, 20:29, 20:40] = 1  # 180, just large
    mask[0, 40:42, 2:4] = 1  # two that touch at a corner are one object of 8
    mask[0, 42:44, 4:6] = 1
    mask[0, :, 90:] = 255
    preds = mask.clone()
    preds[0, 2:6, 2:4] = 0  # half of the first is missed
    preds[0, 10:14, 10:11] = 2  # a fifth of the second is of another class
    preds[0, 50:55, 50:55] = 1  # false pixels count nowhere
    preds[0, :, 90:] = 1
    counts = image_details(preds, mask, 3)[0, 1:, :, 1].numpy()
    assert counts[:, NUMBER].tolist() == [2, 1, 1]
    assert counts[:, AREA].tolist() == [24, 20, 180]
    assert counts[:, FOUND].tolist() == [16, 16, 180]


def test_every_pixel_of_the_truth_is_of_one_object() -> None:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.choice([0, 1, 2, 255], (3, 33, 47)).astype(np.uint8))
    preds = torch.from_numpy(rng.integers(0, 4, (3, 33, 47)).astype(np.uint8))
    counts = image_details(preds, truth, 4)
    for index in range(3):
        for k in range(4):
            is_class = truth[index] == k
            _, number = ndimage.label(is_class.numpy(), np.ones((3, 3)))
            assert counts[index, 1:, NUMBER, k].sum() == number
            assert counts[index, 1:, AREA, k].sum() == is_class.sum()
            assert counts[index, 1:, FOUND, k].sum() == (is_class & (preds[index] == k)).sum()


def test_the_boundary_is_that_of_boundary_iou() -> None:
    rng = np.random.default_rng(1)
    blobs = [
        torch.from_numpy((ndimage.uniform_filter(rng.random((2, 60, 60)), 9) > 0.5).astype(np.uint8)) for _ in "ab"
    ]
    preds, mask = blobs
    shared, truth, predicted = image_details(preds, mask, 2)[:, 0].sum(dim=0).double()
    assert (shared / (truth + predicted - shared)).tolist() == pytest.approx(boundary_iou(preds, mask, 2).tolist())


def test_details_are_read_as_they_were_written_and_nothing_else_is(tmp_path: Path) -> None:
    counts = torch.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5)
    collector = ImageDetails(5)
    collector.add(["b", "a"], counts)
    collector.collect().write(tmp_path / "details.npz")
    read = PerImageDetails.read(tmp_path / "details.npz")
    assert (read.names, read.num_classes) == (["a", "b"], 5)
    assert np.array_equal(read.of_units(np.array([0, 1])), counts.flip(0).numpy())
    assert np.array_equal(read.of_units(np.array([0, 0]))[0], counts.sum(dim=0).numpy())
    PerImageConfusion.of([("a", np.eye(5, dtype=np.int64))]).write(tmp_path / "matrices.npz")
    with pytest.raises(DataError, match="holds no boundaries and objects of images .25 columns"):
        PerImageDetails.read(tmp_path / "matrices.npz")
    with pytest.raises(DataError, match="holds no confusion matrices of images .60 columns are no square"):
        PerImageConfusion.read(tmp_path / "details.npz")
