from itertools import product

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from deeplab_lightning.data.folds.balance import fold_balance, lower_bounds, unbalanceable_classes

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


@pytest.mark.parametrize("seed", range(12))
def test_no_split_is_below_the_lower_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_folds = 2 + seed % 2
    values = rng.geometric(0.3, 7) if seed % 3 else rng.lognormal(0, 1.2, 7)
    largest, mean = lower_bounds(values[:, None], n_folds)
    choices = np.array(list(product(range(n_folds), repeat=len(values))))
    sums = np.stack([(values * (choices == k)).sum(axis=1) for k in range(n_folds)])
    deviation = np.abs(sums * n_folds / values.sum() - 1)
    assert largest[0] <= deviation.max(axis=0).min() + 1e-12
    assert mean[0] <= deviation.mean(axis=0).min() + 1e-12


@pytest.mark.parametrize(
    ("values", "largest", "mean"),
    [
        ([1] * 10, 0, 0),  # two each
        ([1] * 6, 2 / 3, 2 / 3 * 4 / 5),  # 2 1 1 1 1 of 1.2 each: 5/3 - 1, and (4/6 + 4 x 1/6) / 5
        ([9, 1, 1, 1, 1, 2], 2, 0.8),  # 9 of 15 where 3 are even; the others share 6: 1.5
        ([1, 1], 1.5, 1.2),  # two of five folds have one, the others none
        ([], np.nan, np.nan),
    ],
)
def test_lower_bounds_by_hand(values: list[int], largest: float, mean: float) -> None:
    column = np.zeros((12, 1))
    column[: len(values), 0] = values
    bounds = lower_bounds(column, 5)
    assert bounds[0][0] == pytest.approx(largest, nan_ok=True)
    assert bounds[1][0] == pytest.approx(mean if mean != 2 / 3 * 4 / 5 else 4 / 15, nan_ok=True)


def test_a_class_whose_regions_are_too_small_to_be_objects_is_balanced_by_area() -> None:
    objects, areas = np.zeros((20, 2)), np.zeros((20, 2))
    areas[:, 0] = 30  # even
    areas[:, 1], areas[0, 1] = 30, 3000  # one image has nearly all of it
    folds = np.arange(20) % 5
    [found] = unbalanceable_classes(objects, areas, folds, 5)
    assert (found.class_index, found.reason) == (1, "one image holds 4.2 times a fold's share of its area")
    assert fold_balance(objects, areas, folds, 5).summary()["pixel_max"] == pytest.approx(found.pixel_deviation)
    objects[:, 1] = 1
    summary = fold_balance(objects, areas, folds, 5).summary()  # of the one class that has objects
    assert (summary["object_mean"], summary["object_max"]) == (0, 0)


def test_unbalanceable_classes_name_the_reason() -> None:
    objects = np.zeros((20, 5))
    objects[:, 0] = 1  # can be balanced
    objects[:2, 2] = 1  # in two images
    objects[:10, 3] = 1
    objects[0, 3] = 11
    objects[:6, 4] = 1
    folds = np.arange(20) % 5
    found = {item.class_index: item for item in unbalanceable_classes(objects, objects, folds, 5)}
    assert {index: item.reason for index, item in found.items()} == {
        1: "absent",
        2: "fewer images than folds",
        3: "one image holds 2.8 times a fold's share of its objects",
        4: "too few objects to divide",
    }
    assert (found[3].num_images, found[3].num_objects) == (10, 20)
    assert found[3].object_bound == pytest.approx(1.75)
    assert found[3].object_deviation == pytest.approx(2.0)
    groups = [f"{index // 5}" for index in range(20)]
    grouped = {item.class_index: item for item in unbalanceable_classes(objects, objects, folds, 2, groups)}
    assert grouped[3].num_groups == 2
    assert grouped[2].reason == "fewer groups than folds"
