import numpy as np
import pytest

from deeplab_lightning import stratified_folds

PRESENCE = (np.random.default_rng(0).random((103, 4)) < [0.8, 0.3, 0.1, 0.05]).astype(int)


def test_presence_is_balanced_by_iterstrat() -> None:
    folds = stratified_folds(PRESENCE, PRESENCE, 5)
    per_fold = np.array([PRESENCE[folds == k].sum(axis=0) for k in range(5)])
    assert (np.ptp(per_fold[:, 1:], axis=0) <= 2).all()
    assert np.ptp(np.bincount(folds)) <= 4


def test_random_folds_differ_by_at_most_one_image() -> None:
    assert sorted(np.bincount(stratified_folds(PRESENCE, PRESENCE, 5, method="random"))) == [
        20,
        20,
        21,
        21,
        21,
    ]


@pytest.mark.parametrize("method", ["iterstrat", "random"])
def test_the_seed_decides(method: str) -> None:
    first, again, other = (stratified_folds(PRESENCE, PRESENCE, 5, seed=s, method=method) for s in (1, 1, 2))  # type: ignore[arg-type]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_class_is_enough() -> None:
    assert set(stratified_folds(PRESENCE[:, 1:2], PRESENCE[:, 1:2], 3)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("objects", "n_folds", "message"),
    [
        (PRESENCE, 1, "at least 2 and at most the number of images"),
        (PRESENCE, 104, r"\(103\), got 104"),
        (-PRESENCE, 5, "objects must be finite and not negative"),
        (PRESENCE[:, :2], 5, r"must both be \(N, K\)"),
    ],
)
def test_bad_arguments_say_what_is_wrong(objects: "np.ndarray", n_folds: int, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        stratified_folds(objects, PRESENCE, n_folds)
