import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from deeplab_lightning.data.balance import fold_balance

OBJECTS = np.array([[2, 0, 0], [1, 1, 0], [1, 0, 0], [0, 3, 0]])
PIXELS = np.array([[20, 0, 0], [10, 10, 0], [10, 0, 0], [0, 30, 0]])
FOLDS = [0, 0, 1, 1]


def test_deviations_by_hand() -> None:
    balance = fold_balance(OBJECTS, PIXELS, FOLDS, 2)
    assert balance.objects.tolist() == [[3, 1, 0], [1, 3, 0]]
    assert balance.object_deviation[:, :2].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert np.isnan(balance.object_deviation[:, 2]).all()
    assert balance.images.tolist() == [[2, 1, 0], [1, 1, 0]]
    assert balance.sizes.tolist() == [2, 2]


def test_divergence_is_that_of_scipy() -> None:
    balance = fold_balance(OBJECTS, PIXELS, FOLDS, 2)
    expected = [jensenshannon(PIXELS[fold].sum(axis=0), PIXELS.sum(axis=0), base=2) ** 2 for fold in ([0, 1], [2, 3])]
    assert balance.divergence == pytest.approx(expected)


def test_summary_leaves_out_classes_with_fewer_images_than_folds() -> None:
    objects = np.array([[1, 9], [1, 0], [1, 0], [1, 0]])
    summary = fold_balance(objects, objects, FOLDS, 2).summary()
    assert (summary["object_mean"], summary["object_max"]) == (0, 0)
    assert (summary["size_min"], summary["size_max"]) == (2, 2)
