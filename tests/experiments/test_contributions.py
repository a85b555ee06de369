import numpy as np
import pytest
from scipy.sparse import csr_matrix

from deeplab_lightning.experiments.contributions import Contributions, image_margins, margins
from deeplab_lightning.metrics.iou import mean_iou, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion

RNG = np.random.default_rng(0)
A, B = RNG.integers(0, 50, (2, 4, 3, 3))


def test_contributions_sum_to_the_pooled_difference() -> None:
    found = Contributions.of(margins(A), margins(B))
    pooled = truth_iou(B.sum(axis=0)) - truth_iou(A.sum(axis=0))
    assert found.values.sum(axis=0) == pytest.approx(pooled)
    assert found.weights.sum(axis=0) == pytest.approx([1, 1, 1])
    assert found.miou().mean == pytest.approx(mean_iou(B.sum(axis=0)) - mean_iou(A.sum(axis=0)))
    assert [item.mean for item in found.classes()] == pytest.approx(pooled)


def test_margins_of_images_are_those_of_their_matrices() -> None:
    images = PerImageConfusion([f"{index}" for index in range(4)], csr_matrix(A.reshape(4, 9)))
    assert np.array_equal(image_margins(images, np.arange(4)), margins(A))
    folds = np.array([0, 1, 1, 0])
    expected = margins(np.stack([A[folds == fold].sum(axis=0) for fold in range(2)]))
    assert np.array_equal(image_margins(images, folds), expected)


def test_a_class_without_truth_is_left_out() -> None:
    a, b = A.copy(), B.copy()
    a[:, 2], b[:, 2] = 0, 0
    found = Contributions.of(margins(a), margins(b))
    assert np.isnan(found.values[:, 2]).all()
    assert np.isnan(found.classes()[2].p)
    assert found.miou().mean == pytest.approx(np.nanmean(truth_iou(b.sum(axis=0)) - truth_iou(a.sum(axis=0))))
    a[:], b[:] = 0, 0
    assert np.isnan(Contributions.of(margins(a), margins(b)).miou().mean)


def test_a_class_of_one_unit_cannot_be_certain() -> None:
    """A bootstrap of the images starred a class of one image at any difference, since all its resamples agree."""
    a = np.array([[[90, 10], [0, 0]]] * 29 + [[[0, 0], [80, 20]]])
    b = np.array([[[90, 10], [0, 0]]] * 29 + [[[0, 0], [20, 80]]])
    found = Contributions.of(margins(a), margins(b))
    assert np.isnan(found.classes()[1].p) or found.classes()[1].p > 0.05
    assert found.miou().p > 0.05


def test_a_class_of_one_fold_widens_the_interval() -> None:
    """The spread of the folds' own mIoU hardly showed it, since each fold has a mean of its own classes."""
    even = np.array([[[80, 20, 0], [20, 80, 0], [0, 0, 0]]] * 5)
    noise = np.array([[2, -2, 0], [0, 0, 0], [0, 0, 0]]) * np.array([1, -1, 2, -2, 0])[:, None, None]
    a, b = even.copy(), even + noise
    a[0, 2, 2], b[0, 2, 2] = 10, 5
    a[0, 2, 0], b[0, 2, 0] = 0, 5
    found = Contributions.of(margins(a), margins(b)).miou(overlap=0.2)
    assert found.mean < -0.15
    assert found.p > 0.05
