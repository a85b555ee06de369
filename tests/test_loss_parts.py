"""Losses against implementations of their own, on random logits with ignored pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from deeplab_lightning.losses import (
    BoundaryCrossEntropyLoss,
    ClassPixels,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    OhemCrossEntropyLoss,
    SumLoss,
    TverskyLoss,
    measure_weights,
)

WEIGHTS = [0.5, 2.0, 1.0, 3.0]
K = len(WEIGHTS)


def drawn(seed: int = 0, shape: tuple[int, int, int] = (2, 9, 11)) -> tuple[Tensor, Tensor]:
    """Draw logits and a mask in blocks, with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], K, *shape[1:], generator=generator, dtype=torch.float64) * 3
    mask = torch.randint(0, K, (shape[0], 3, 4), generator=generator).repeat_interleave(3, 1).repeat_interleave(3, 2)
    mask = mask[:, : shape[1], : shape[2]].clone()
    mask[torch.rand(mask.shape, generator=generator) < 0.15] = 255
    return logits, mask


def pixels(logits: Tensor, mask: Tensor) -> list[tuple[np.ndarray[Any, Any], int, tuple[int, int, int]]]:
    """List probabilities, class and place of each pixel that counts."""
    scores = np.exp(logits.numpy() - logits.numpy().max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    found = []
    for b, y, x in np.ndindex(*mask.shape):
        if mask[b, y, x] != 255:
            found.append((scores[b, :, y, x], int(mask[b, y, x]), (b, y, x)))
    return found


def focal(logits: Tensor, mask: Tensor, weights: list[float]) -> float:
    terms = [(weights[c], -weights[c] * (1 - p[c]) ** 2 * np.log(p[c])) for p, c, _ in pixels(logits, mask)]
    return float(sum(t for _, t in terms) / sum(w for w, _ in terms))


def ohem(logits: Tensor, mask: Tensor, weights: list[float]) -> float:
    ordered = sorted(pixels(logits, mask), key=lambda pixel: pixel[0][pixel[1]])
    least = int(np.ceil(0.0625 * len(ordered)))
    kept = [(p, c) for rank, (p, c, _) in enumerate(ordered) if rank < least or p[c] < 0.7]
    return float(sum(-weights[c] * np.log(p[c]) for p, c in kept) / sum(weights[c] for _, c in kept))


def boundary(logits: Tensor, mask: Tensor, weights: list[float]) -> float:
    total = norm = 0.0
    for p, c, (b, y, x) in pixels(logits, mask):
        near = mask[b, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        factor = 4.0 if bool(((near != 255) & (near != c)).any()) else 1.0
        total += -weights[c] * factor * np.log(p[c])
        norm += weights[c] * factor
    return float(total / norm)


def tversky(logits: Tensor, mask: Tensor, weights: list[float]) -> float:
    found = pixels(logits, mask)
    losses = {}
    for c in {c for _, c, _ in found}:
        tp = sum(p[c] for p, t, _ in found if t == c)
        fp, fn = sum(p[c] for p, t, _ in found if t != c), sum(1 - p[c] for p, t, _ in found if t == c)
        losses[c] = 1 - tp / (tp + 0.3 * fp + 0.7 * fn)
    return float(sum(weights[c] * v for c, v in losses.items()) / sum(weights[c] for c in losses))


EXPECTED: list[tuple[Callable[..., nn.Module], Callable[[Tensor, Tensor, list[float]], float]]] = [
    (FocalLoss, focal),
    (OhemCrossEntropyLoss, ohem),
    (lambda **words: BoundaryCrossEntropyLoss(width=2, **words), boundary),
    (TverskyLoss, tversky),
]


@pytest.mark.parametrize(("build", "expected"), EXPECTED)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_are_those_of_their_definition(
    build: Callable[..., nn.Module],
    expected: Callable[[Tensor, Tensor, list[float]], float],
    weights: list[float] | None,
    seed: int,
) -> None:
    logits, mask = drawn(seed)
    assert float(build(class_weights=weights)(logits, mask)) == pytest.approx(
        expected(logits, mask, weights or [1.0] * K), rel=1e-6
    )


def test_dice_is_smps_where_all_classes_are_present() -> None:
    logits, mask = drawn()
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=255)
    assert float(DiceLoss()(logits, mask)) == pytest.approx(float(theirs(logits, mask)), rel=1e-6)
    only = mask.where(mask < 2, 255)  # two of four classes: theirs is diluted
    assert float(DiceLoss()(logits, only)) == pytest.approx(2 * float(theirs(logits, only)), rel=1e-6)


def test_focal_of_gamma_zero_is_the_cross_entropy() -> None:
    logits, mask = drawn()
    expected = CrossEntropyLoss(class_weights=WEIGHTS)(logits, mask)
    assert torch.allclose(FocalLoss(gamma=0, class_weights=WEIGHTS)(logits, mask), expected)


LOSSES: list[nn.Module] = [
    FocalLoss(),
    FocalLoss(gamma=0.5),
    OhemCrossEntropyLoss(),
    BoundaryCrossEntropyLoss(),
    TverskyLoss(gamma=0.75),
    DiceLoss(),
    smp.losses.LovaszLoss("multiclass", ignore_index=255),
    SumLoss([CrossEntropyLoss(), DiceLoss()], weights=[1, 0.5]),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_ignored_pixels_have_no_gradient(loss: nn.Module) -> None:
    logits, mask = drawn()
    logits = logits.float().requires_grad_()
    loss(logits, mask).backward()
    assert logits.grad is not None
    assert not logits.grad.permute(0, 2, 3, 1)[mask == 255].any()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


@pytest.mark.parametrize("loss", [x for x in LOSSES if not isinstance(x, smp.losses.LovaszLoss)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_void_and_certain_batches_are_finite(loss: nn.Module, scale: float, dtype: torch.dtype) -> None:
    """A network that is certain, right or wrong, has probabilities of 0 and 1 to rounding."""
    logits, mask = drawn()
    right = nn.functional.one_hot(mask.where(mask < K, 0), K).permute(0, 3, 1, 2) * scale
    for values in (logits * scale, right, -right):
        for truth in (mask, torch.full_like(mask, 255)):
            leaf = values.to(dtype).detach().requires_grad_()
            result = loss(leaf, truth)
            result.backward()
            assert result.isfinite()
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
    assert float(loss(logits.to(dtype), torch.full_like(mask, 255))) == 0


@pytest.mark.parametrize("loss", [x for x in LOSSES if not isinstance(x, smp.losses.LovaszLoss)], ids=str)
def test_the_gradient_is_that_of_differences(loss: nn.Module) -> None:
    logits, mask = drawn(shape=(1, 3, 4))
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), (logits.requires_grad_(),), eps=1e-7, atol=1e-5)


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.repeat(np.arange(K), [1000, 10, 300, 90])
    counts = np.bincount(labels)
    loss = CrossEntropyLoss(class_weights="balanced")
    found = measure_weights(loss, ClassPixels(counts, np.full(K, counts.sum())))["balanced"]
    expected = compute_class_weight("balanced", classes=np.arange(K), y=labels)
    assert np.allclose(found, expected / expected.mean())
    assert loss.class_weights is not None
    assert np.allclose(loss.class_weights.numpy(), found)


def test_rules_by_hand() -> None:
    pixels_of = ClassPixels(np.array([100, 25, 0]), np.array([125, 50, 0]))
    rules: Any = ("inverse_sqrt", "median_frequency")
    by_rule = {rule: measure_weights(FocalLoss(class_weights=rule), pixels_of)[rule] for rule in rules}
    assert np.allclose(by_rule["inverse_sqrt"], [2 / 3, 4 / 3, 1])  # 1 to 2
    assert np.allclose(by_rule["median_frequency"], [1.25 * 2 / 3.25, 2 * 2 / 3.25, 1])


def test_a_rule_that_was_not_applied_is_an_error() -> None:
    with pytest.raises(ValueError, match="measured on the training images"):
        CrossEntropyLoss(class_weights="balanced")(*drawn())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: SumLoss([]), "one or more losses"),
        (lambda: SumLoss([DiceLoss()], weights=[1, 2]), "got 1 and 2 weights"),
        (lambda: OhemCrossEntropyLoss(min_share=0), "min_share"),
        (lambda: FocalLoss(gamma=-1), "gamma"),
        (lambda: TverskyLoss(alpha=0), "alpha"),
        (lambda: BoundaryCrossEntropyLoss(width=0), "width"),
        (lambda: DiceLoss(class_weights=[float("nan")]), "finite"),
    ],
)
def test_values_that_cannot_be_used_are_refused(build: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()
