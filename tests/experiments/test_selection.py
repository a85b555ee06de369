"""Choose on some images and judge on others, against hand-made and simulated candidates."""

import numpy as np
import numpy.typing as npt
import pytest

from deeplab_lightning.experiments.selection import NUM_PARTS, TOLERANCE, choose, gain, pooled_miou, split_into_parts

Ints = npt.NDArray[np.int64]


def margins_of(shares: npt.NDArray[np.float64], pixels: int = 10_000) -> Ints:
    """Return (..., 3, 2) margins of images of two classes in equal parts, of which shares are labelled right."""
    right = np.rint(np.stack([shares, shares], axis=-1) * pixels / 2).astype(np.int64)
    half = np.full_like(right, pixels // 2)
    predicted = right + (half - right)[..., ::-1]
    return np.stack([right, half, predicted], axis=-2)


def test_pooled_miou_is_of_the_classes_with_truth() -> None:
    margins = np.array([[6, 0, 0], [8, 2, 0], [10, 1, 3]])  # correct, truth, predicted
    assert pooled_miou(margins) == pytest.approx((6 / 12 + 0 / 3) / 2)


def test_each_fold_is_judged_by_the_choice_of_the_others() -> None:
    shares = np.array([[0.9, 0.9, 0.5, 0.5], [0.6, 0.6, 0.8, 0.8]])  # candidate 0 is good on fold 0, 1 on fold 1
    chosen = choose(margins_of(shares), np.array([0, 0, 1, 1]), [1, 1], [0, 1])
    assert chosen.of_fold == {0: 1, 1: 0}
    expected = margins_of(np.array([0.6, 0.6, 0.5, 0.5])).sum(axis=0)
    assert chosen.miou == pytest.approx(float(pooled_miou(expected)))
    assert chosen.selected_miou == pytest.approx(float(pooled_miou(margins_of(shares)[chosen.final].sum(axis=0))))
    assert chosen.optimism == pytest.approx(chosen.selected_miou - chosen.miou)


def test_the_cheapest_of_equally_good_candidates_is_chosen() -> None:
    shares = np.array([[0.8] * 4, [0.8 + TOLERANCE / 4] * 4, [0.7] * 4])
    folds = np.array([0, 0, 1, 1])
    assert choose(margins_of(shares), folds, [2, 9, 1], [0, 1, 2]).final == 0
    assert choose(margins_of(shares), folds, [9, 2, 1], [0, 1, 2]).final == 1
    assert choose(margins_of(shares), folds, [9, 2, 1], [2]).final == 2


def test_a_choice_among_chance_promises_nothing() -> None:
    """The best of 40 equal candidates looks better than it is; the nested figure does not."""
    rng = np.random.default_rng(0)
    folds = np.arange(30) % 5
    truth, nested, selected = float(pooled_miou(margins_of(np.array(0.7)))), [], []
    for _ in range(60):
        shares = rng.normal(0.7, 0.08, (40, 30)).clip(0, 1)
        chosen = choose(margins_of(shares), folds, np.ones(40).tolist(), list(range(40)))
        nested.append(chosen.miou - truth)
        selected.append(chosen.selected_miou - truth)
    error = np.std(nested) / np.sqrt(len(nested))
    assert abs(np.mean(nested)) < 3 * error
    assert np.mean(selected) > 0.02


def test_a_gain_has_the_interval_of_its_groups() -> None:
    rng = np.random.default_rng(1)
    folds = np.arange(40) % 2
    base = rng.normal(0.6, 0.05, 40)
    better = base + rng.normal(0.05, 0.01, 40)
    parts = [choose(margins_of(own[None]), folds, [1], [0]) for own in (base, better)]
    alone = gain(parts[0], parts[1], np.arange(40))
    assert alone.mean == pytest.approx(parts[1].miou - parts[0].miou, abs=1e-3)
    assert 0 < alone.low < alone.mean < alone.high
    pairs = gain(parts[0], parts[1], np.arange(40) // 2)
    assert pairs.mean == pytest.approx(alone.mean, abs=1e-9)
    assert pairs.low != alone.low


def test_parts_keep_groups_and_share_the_classes() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 3)
    pixels = rng.integers(0, 100, (60, 2))
    pixels[:, 1] *= np.repeat(np.arange(20) % 4 == 0, 3)  # a class in five of the groups
    parts = split_into_parts(pixels, groups)
    assert set(parts) == set(range(NUM_PARTS))
    assert all(len(set(parts[groups == group])) == 1 for group in range(20))
    assert all(pixels[parts == part, 1].any() for part in range(NUM_PARTS))
    assert sorted(set(split_into_parts(pixels[:6], groups[:6]))) == [0, 1]  # of two groups
