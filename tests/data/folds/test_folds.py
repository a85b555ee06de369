from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_rand_score

from deeplab_lightning import stratified_folds
from deeplab_lightning.data.folds.partition import FoldWeights, _integer_features
from deeplab_lightning.errors import UserError

Array = npt.NDArray[np.float64]


def litter(num_images: int = 203, num_classes: int = 9, seed: int = 0) -> tuple[Array, Array]:
    """Draw objects and pixels of a long tail: class 0 is in most images, the last class in a few."""
    rng = np.random.default_rng(seed)
    presence = rng.random((num_images, num_classes)) < 0.8 * 0.6 ** np.arange(num_classes)
    objects = presence * rng.geometric(0.4, (num_images, num_classes))
    return objects.astype(float), objects * rng.lognormal(6, 1, (num_images, num_classes))


def deviation(values: Array, folds: npt.NDArray[np.int64], n_folds: int) -> Array:
    """Compute the relative deviation from the even share, (n_folds, K)."""
    sums = np.array([values[folds == k].sum(axis=0) for k in range(n_folds)])
    share = np.maximum(values.sum(axis=0) / n_folds, 1e-9)  # 0 for a class without objects
    return np.asarray(np.abs(sums - share * (values.sum(axis=0) > 0)) / share)


OBJECTS, PIXELS = litter()


def test_balanced_folds_even_out_objects_and_pixels() -> None:
    common = (OBJECTS > 0).sum(axis=0) >= 50
    results = {
        method: [
            deviation(values, stratified_folds(OBJECTS, PIXELS, 5, method=method), 5) for values in (OBJECTS, PIXELS)
        ]
        for method in ("balanced", "iterstrat", "random")
    }
    for other in ("iterstrat", "random"):
        for ours, theirs in zip(results["balanced"], results[other], strict=True):
            assert ours[:, common].mean() < 0.3 * theirs[:, common].mean()
    assert results["balanced"][0][:, common].max() < 0.05


@pytest.mark.parametrize("n_folds", [2, 5, 7])
def test_fold_sizes_differ_by_at_most_one(n_folds: int) -> None:
    for method in ("balanced", "random"):
        sizes = np.bincount(stratified_folds(OBJECTS, PIXELS, n_folds, method=method), minlength=n_folds)
        assert np.ptp(sizes) <= 1


def test_folds_ignore_the_order_of_the_images() -> None:
    shuffle = np.random.default_rng(1).permutation(len(OBJECTS))
    # Images without any object are equal, so they may be exchanged for one another.
    distinct = PIXELS.sum(axis=1) > 0
    folds = stratified_folds(OBJECTS, PIXELS, 5)
    shuffled = stratified_folds(OBJECTS[shuffle], PIXELS[shuffle], 5)
    assert np.array_equal(folds[shuffle][distinct[shuffle]], shuffled[distinct[shuffle]])


def test_folds_ignore_the_labels_of_the_classes() -> None:
    shuffle = np.random.default_rng(1).permutation(OBJECTS.shape[1])
    folds = stratified_folds(OBJECTS, PIXELS, 5)
    assert np.array_equal(folds, stratified_folds(OBJECTS[:, shuffle], PIXELS[:, shuffle], 5))


def test_sums_are_exact() -> None:
    for n_folds in (2, 5, 10, 20):
        counts, areas = csr_matrix(OBJECTS), csr_matrix(PIXELS)
        presence = (counts + areas).astype(bool)
        sparse = _integer_features(counts, areas, presence, np.ones(len(OBJECTS)), n_folds, FoldWeights())
        features = sparse.toarray()
        assert np.array_equal(features, np.rint(features))
        total = features.sum(axis=0)
        # The largest sum in a swap: an image against a fold that holds everything.
        largest = max(sum(int(a) * int(b) for a, b in zip(row, total, strict=True)) for row in features)
        assert n_folds * largest < 2**53


def test_another_seed_gives_another_partition() -> None:
    first, again, other = (stratified_folds(OBJECTS, PIXELS, 5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    # By chance, a fifth of the pairs in one fold for one seed is in one fold for another seed as well.
    partitions = [stratified_folds(OBJECTS, PIXELS, 5, seed=seed) for seed in range(6)]
    agreement = [adjusted_rand_score(one, other) for one, other in combinations(partitions, 2)]
    assert np.mean(agreement) < 0.15  # 0 by chance, 1 for the same partition
    assert not np.array_equal(first, other)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Draw objects, pixels and a number of folds; few images, many ties, empty images and classes."""
    num_images, num_classes = draw(st.integers(2, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    objects = rng.poisson(draw(st.sampled_from([0.1, 0.7, 3.0])), (num_images, num_classes)).astype(float)
    pixels = objects * rng.choice([1.0, 37.0, 1e5, 1e-4], (num_images, num_classes))
    return objects, pixels, draw(st.integers(2, num_images))


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 3))
def test_any_table_is_divided_evenly_with_rare_classes_apart(table: tuple[Array, Array, int], seed: int) -> None:
    objects, pixels, n_folds = table
    folds = stratified_folds(objects, pixels, n_folds, seed=seed)
    sizes = np.bincount(folds, minlength=n_folds)
    assert len(sizes) == n_folds
    assert np.ptp(sizes) <= 1
    rare = [column for column in (objects > 0).T if 0 < column.sum() < n_folds]
    if len(rare) == 1:
        assert len(set(folds[rare[0]])) == rare[0].sum()
    assert np.array_equal(folds, stratified_folds(csr_matrix(objects), csr_matrix(pixels), n_folds, seed=seed))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_any_order_of_images_and_classes_gives_the_same_folds(table: tuple[Array, Array, int], random: Any) -> None:
    objects, pixels, n_folds = table
    images, classes = list(range(len(objects))), list(range(objects.shape[1]))
    random.shuffle(images)
    random.shuffle(classes)
    folds = stratified_folds(objects, pixels, n_folds)
    shuffled = stratified_folds(objects[images][:, classes], pixels[images][:, classes], n_folds)

    # Images with the same content are interchangeable: only their number in each fold must agree.
    def content(order: list[int], assigned: npt.NDArray[np.int64]) -> list[tuple[float, ...]]:
        return sorted((*objects[i], *pixels[i], fold) for i, fold in zip(order, assigned.tolist(), strict=True))

    symmetric = len({tuple(sorted(zip(objects[:, c], pixels[:, c], strict=True))) for c in classes}) < len(classes)
    if not symmetric:
        assert content(images, shuffled) == content(list(range(len(objects))), folds)


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(2, 12), st.integers(0, 3))
def test_any_groups_stay_whole_and_fill_every_fold(table: tuple[Array, Array, int], num_groups: int, seed: int) -> None:
    objects, pixels, n_folds = table
    groups = np.random.default_rng(seed).integers(0, num_groups, len(objects))
    n_folds = min(n_folds, len(set(groups)))
    if n_folds < 2:
        return
    folds = stratified_folds(objects, pixels, n_folds, groups=groups, seed=seed)
    assert set(folds) == set(range(n_folds))
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))


def test_images_of_rare_classes_are_in_different_folds() -> None:
    for seed in range(5):
        objects, pixels = litter(seed=seed)
        rare = np.zeros((len(objects), 3))
        for column, count in enumerate((1, 3, 4)):
            rare[np.random.default_rng(seed + column).choice(len(objects), count, replace=False), column] = 1
        objects, pixels = np.hstack([objects, rare]), np.hstack([pixels, rare * 9000])
        folds = stratified_folds(objects, pixels, 5, seed=seed)
        for column, count in enumerate((1, 3, 4), start=-3):
            assert len(set(folds[objects[:, column] > 0])) == count


def test_groups_stay_whole_and_every_fold_has_one() -> None:
    groups = np.random.default_rng(0).integers(0, 23, len(OBJECTS))
    for method in ("balanced", "group"):
        folds = stratified_folds(OBJECTS, PIXELS, 5, groups=groups, method=method)
        assert all(len(set(folds[groups == g])) == 1 for g in groups)
        assert set(folds) == set(range(5))
    as_many = np.arange(len(OBJECTS)) % 5
    assert len(set(zip(as_many, stratified_folds(OBJECTS, PIXELS, 5, groups=as_many), strict=True))) == 5


def test_grouped_folds_are_more_even_than_group_k_fold() -> None:
    groups = np.random.default_rng(0).integers(0, 40, len(OBJECTS))
    ours, theirs = (
        deviation(OBJECTS, stratified_folds(OBJECTS, PIXELS, 5, groups=groups, method=method), 5).mean()
        for method in ("balanced", "group")
    )
    assert ours < 0.8 * theirs


def test_few_groups_reach_the_enumerated_optimum() -> None:
    from itertools import product

    groups = np.random.default_rng(3).integers(0, 6, len(OBJECTS))
    folds = stratified_folds(OBJECTS, PIXELS, 2, groups=groups)

    def cost(assigned: npt.NDArray[np.int64]) -> float:
        objects, pixels = deviation(OBJECTS, assigned, 2), deviation(PIXELS, assigned, 2)
        presence, images = (
            deviation((OBJECTS > 0).astype(np.float64), assigned, 2),
            deviation(np.ones((len(assigned), 1)), assigned, 2),
        )
        totals = [deviation(np.asarray(v.sum(axis=1, keepdims=True)), assigned, 2) for v in (OBJECTS, PIXELS)]
        parts = ((objects, 3), (pixels, 1), (presence, 0.1), (images, 10), *((t, 1) for t in totals))
        return float(sum(weight * (part**2).sum() for part, weight in parts))

    options = [np.array(choice)[groups] for choice in product((0, 1), repeat=6) if 0 < sum(choice) < 6]
    assert cost(folds) == pytest.approx(min(map(cost, options)), rel=1e-3)


def test_one_class_and_empty_images_are_enough() -> None:
    folds = stratified_folds(OBJECTS[:, -1:], PIXELS[:, -1:], 3)
    assert sorted(np.bincount(folds)) == [67, 68, 68]
    assert set(stratified_folds(OBJECTS[:, 1:2], PIXELS[:, 1:2], 3, method="iterstrat")) == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_folds": 1}, "at least 2 and at most the number of images"),
        ({"n_folds": 204}, r"\(203\), got 204"),
        ({"objects": -OBJECTS}, "objects must be finite and not negative"),
        ({"pixels": PIXELS + np.inf}, "pixels must be finite and not negative"),
        ({"objects": OBJECTS[:, :2]}, r"must both be \(N, K\)"),
        ({"objects": OBJECTS[0]}, r"objects must be \(N, K\), got \(9,\)"),
        ({"pixels": PIXELS[None]}, r"pixels must be \(N, K\), got \(1, 203, 9\)"),
        ({"groups": np.zeros(203)}, "there are 1 groups for 5 folds"),
        ({"groups": np.zeros(7)}, r"one label per image \(203\), got 7"),
        ({"method": "group"}, "needs groups, got None"),
        ({"method": "random", "groups": np.arange(203)}, "'random' takes no groups"),
        ({"method": "kfold"}, "got 'kfold'"),
    ],
)
def test_errors_of_invalid_arguments_name_the_fault(arguments: dict[str, object], message: str) -> None:
    full = {"objects": OBJECTS, "pixels": PIXELS, "n_folds": 5, **arguments}
    with pytest.raises(ValueError, match=message):
        stratified_folds(**full)  # type: ignore[arg-type]


def test_taco_is_balanced_to_within_reach(real_data: "object") -> None:
    import json
    from pathlib import Path

    content = json.loads((Path(str(real_data)) / "taco" / "annotations.json").read_text())
    rows = {image["id"]: row for row, image in enumerate(sorted(content["images"], key=lambda i: i["file_name"]))}
    objects, pixels = np.zeros((len(rows), 60)), np.zeros((len(rows), 60))
    for annotation in content["annotations"]:
        objects[rows[annotation["image_id"]], annotation["category_id"]] += 1
        pixels[rows[annotation["image_id"]], annotation["category_id"]] += annotation["area"]
    folds = stratified_folds(objects, pixels, 5)
    num_images = (objects > 0).sum(axis=0)
    # The mean over classes with at least 5 images cannot fall below .096 (objects) and .294 (pixels).
    assert deviation(objects, folds, 5)[:, num_images >= 5].mean() <= 0.099
    assert deviation(pixels, folds, 5)[:, num_images >= 5].mean() <= 0.34
    assert deviation(objects, folds, 5)[:, num_images >= 50].max() <= 0.08


@pytest.mark.parametrize("values", [1e308, 1e101])
def test_values_whose_sums_overflow_are_refused(values: float) -> None:
    with pytest.raises(UserError, match=r"pixels must be at most 1e\+100, got 1e\+"):
        stratified_folds(np.ones((4, 2)), np.full((4, 2), values), 2)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(UserError, match="the weight presence must be finite and not negative, got"):
        FoldWeights(presence=weight)


def test_many_folds_hold_one_image_of_each_kind() -> None:
    """Two kinds of images, and twice as many images as folds."""
    objects = np.repeat(np.eye(2), 80, axis=0)
    folds = stratified_folds(objects, objects, 80)
    assert sorted(folds[:80].tolist()) == sorted(folds[80:].tolist()) == list(range(80))
