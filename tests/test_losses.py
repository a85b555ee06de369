import pytest
import segmentation_models_pytorch as smp
import torch

from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.resizing import resize


@pytest.mark.parametrize("band_rows", [None, 3])
def test_classes_of_weight_zero_alone_give_zero(band_rows: int | None) -> None:
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    loss = CrossEntropyLoss(class_weights=[0.0, 1.0], band_rows=band_rows)(logits, torch.zeros(2, 8, 8).long())
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_precision_survives_the_loss_scale() -> None:
    logits = torch.randn(1, 3, 4, 4).half().requires_grad_()
    mask = torch.randint(0, 3, (1, 32, 32))
    (CrossEntropyLoss(band_rows=8)(logits, mask) * 65536.0).backward()
    wide = logits.detach().float().requires_grad_()
    CrossEntropyLoss(band_rows=8)(wide, mask).backward()
    assert logits.grad is not None
    assert wide.grad is not None
    assert torch.allclose(logits.grad.float() / 65536, wide.grad, rtol=2e-3)


def test_it_is_the_mean_over_pixels_that_are_not_ignored() -> None:
    logits, mask = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    mask[0, :2] = 255
    chosen = logits.log_softmax(1).permute(0, 2, 3, 1)[mask != 255]
    expected = -chosen[torch.arange(len(chosen)), mask[mask != 255]].mean()
    assert torch.allclose(CrossEntropyLoss()(logits, mask), expected)


def test_ignored_pixels_change_nothing() -> None:
    logits, mask = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    mask[:, 0] = 255
    other = logits.clone()
    other[:, :, 0] = 99
    assert torch.equal(CrossEntropyLoss()(logits, mask), CrossEntropyLoss()(other, mask))


def test_all_ignored_is_zero_with_a_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = CrossEntropyLoss()(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_pixels_are_weighted_by_their_class() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0] = 1.0
    mask = torch.tensor([[[0, 1]]])
    per_pixel = torch.nn.functional.cross_entropy(logits, mask, reduction="none").flatten()
    loss = CrossEntropyLoss(class_weights=[3.0, 1.0])(logits, mask)
    assert torch.allclose(loss, (3 * per_pixel[0] + per_pixel[1]) / 4)


@pytest.mark.parametrize(
    "loss",
    [
        smp.losses.DiceLoss("multiclass", ignore_index=255),
        smp.losses.LovaszLoss("multiclass", ignore_index=255),
    ],
)
def test_losses_of_smp_take_the_same_arguments(loss: torch.nn.Module) -> None:
    logits, mask = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    mask[:, 0] = 255
    other = logits.clone()
    other[:, :, 0] = 99
    assert torch.allclose(loss(logits, mask), loss(other, mask))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_smoothing": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"band_rows": 0}, "null or at least 1, got 0"),
        ({"class_weights": [1, -1]}, "not negative, got -1 for class 1"),
        ({"class_weights": [0, 0]}, "must not all be 0"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        CrossEntropyLoss(**arguments)


def test_a_wrong_number_of_weights_is_named() -> None:
    with pytest.raises(ValueError, match="one value per class, got 2 values for 3 classes"):
        CrossEntropyLoss(class_weights=[1, 1])(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize(("small", "rows"), [((5, 7), 4), ((16, 20), 7), ((3, 3), 100)])
def test_bands_give_the_same_loss_and_gradient(
    small: tuple[int, int], rows: int, weights: list[float] | None, smoothing: float
) -> None:
    mask = torch.randint(0, 3, (2, 16, 20))
    mask[:, 3:6] = 255
    logits = torch.randn(2, 3, *small, requires_grad=True)
    plain = CrossEntropyLoss(class_weights=weights, label_smoothing=smoothing)(resize(logits, (16, 20)), mask)
    (expected,) = torch.autograd.grad(3 * plain, logits)
    banded = CrossEntropyLoss(class_weights=weights, label_smoothing=smoothing, band_rows=rows)(logits, mask)
    (gradient,) = torch.autograd.grad(3 * banded, logits)
    torch.testing.assert_close(banded, plain)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_logits_that_are_not_finite_do_not_spread() -> None:
    logits, mask = torch.randn(1, 3, 6, 6), torch.randint(0, 2, (1, 24, 24))
    logits[..., 0, 0], mask[:, :8, :8] = torch.nan, 255
    plain = CrossEntropyLoss()(resize(logits, (24, 24)), mask)
    assert plain.isfinite()
    assert torch.allclose(CrossEntropyLoss()(logits, mask), plain)


def test_different_numbers_of_images_and_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="must hold the same number of images, got 1 and 2"):
        CrossEntropyLoss()(torch.zeros(1, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long))


def test_bands_leave_out_ignored_pixels_and_need_no_gradient() -> None:
    logits, mask = torch.randn(1, 3, 4, 4, requires_grad=True), torch.full((1, 8, 8), 255)
    loss = CrossEntropyLoss(band_rows=2)
    assert float(loss(logits, mask).detach()) == 0
    with torch.no_grad():
        assert not loss(logits, torch.zeros(1, 8, 8, dtype=torch.long)).requires_grad


def test_the_loss_is_in_float32_under_mixed_precision() -> None:
    logits, mask = torch.randn(1, 3, 4, 4).requires_grad_(), torch.randint(0, 3, (1, 32, 32))
    expected = CrossEntropyLoss()(logits, mask)
    (gradient,) = torch.autograd.grad(expected, logits)
    with torch.autocast("cpu", torch.bfloat16):
        loss = CrossEntropyLoss()(logits, mask)
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss, logits)[0], gradient)


def test_gradients_of_bands_have_the_dtype_of_the_logits() -> None:
    logits = torch.randn(1, 3, 4, 4).bfloat16().requires_grad_()
    CrossEntropyLoss(band_rows=2)(logits, torch.zeros(1, 8, 8, dtype=torch.long)).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("band_rows", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_class_weights_work_in_every_precision(dtype: torch.dtype, band_rows: int | None) -> None:
    """Lightning casts the buffer with the module in bf16-true and 64-true; evaluation gives logits in float32."""
    torch.manual_seed(0)
    logits, mask = torch.randn(1, 3, 4, 5), torch.randint(0, 3, (1, 8, 9))
    logits = torch.nn.functional.interpolate(logits, size=(8, 9)) if band_rows is None else logits
    loss = CrossEntropyLoss(class_weights=[0.5, 2.0, 1.0], band_rows=band_rows)
    expected = loss(logits.to(dtype).float(), mask)
    for given in (logits, logits.to(dtype)):
        assert torch.allclose(loss.to(dtype)(given, mask).float(), expected, rtol=0.01)
