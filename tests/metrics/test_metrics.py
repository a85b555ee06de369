import math

import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from deeplab_lightning.metrics.boundary import boundary_iou
from deeplab_lightning.metrics.confusion import ConfusionMatrix, per_image_confusion
from deeplab_lightning.metrics.iou import class_iou, summarize

MATRIX = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])


def random_pair(size: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (4, size // 40, 10), generator=generator)
    return torch.where(
        torch.rand(truth.shape, generator=generator) < 0.5,
        truth,
        torch.randint(0, 5, truth.shape, generator=generator),
    ), truth


def test_counts_equal_scikit_learns() -> None:
    preds, truth = random_pair()
    metric = ConfusionMatrix(5)
    metric.update(per_image_confusion(preds, truth, 5))
    assert metric.compute().tolist() == confusion_matrix(truth.flatten(), preds.flatten(), labels=range(5)).tolist()
    expected = jaccard_score(truth.flatten(), preds.flatten(), average=None)
    assert class_iou(metric.compute()) == pytest.approx(expected)


def test_counts_do_not_depend_on_the_batches() -> None:
    preds, truth = random_pair()
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(per_image_confusion(preds, truth, 5))
    for p, t in zip(preds, truth, strict=True):
        parts.update(per_image_confusion(p[None], t[None].to(torch.uint8), 5))
    assert torch.equal(whole.compute(), parts.compute())


def test_each_image_is_counted_by_itself() -> None:
    preds, truth = random_pair()
    apart = per_image_confusion(preds, truth, 5)
    for index in range(len(preds)):
        assert torch.equal(apart[index], per_image_confusion(preds[index : index + 1], truth[index : index + 1], 5)[0])
        assert int(apart[index].sum()) == truth[index].numel()


def test_ignored_pixels_are_not_counted() -> None:
    preds, truth = random_pair()
    truth[0] = 255
    metric = ConfusionMatrix(5)
    metric.update(per_image_confusion(preds, truth.to(torch.uint8), 5))
    assert int(metric.compute().sum()) == truth[1:].numel()


def test_metrics_equal_those_by_hand() -> None:
    figures = summarize(MATRIX)
    assert math.isclose(figures["miou"], (3 / 6 + 4 / 7) / 2)  # the third class is absent
    assert math.isclose(figures["pixel_accuracy"], 7 / 10)
    assert math.isclose(figures["mean_accuracy"], (3 / 4 + 4 / 6) / 2)
    assert math.isclose(figures["fw_iou"], 0.4 * 3 / 6 + 0.6 * 4 / 7)
    assert math.isclose(figures["dice"], (6 / 9 + 8 / 11) / 2)


def test_absent_classes_are_nan_and_predicted_ones_zero() -> None:
    assert math.isnan(class_iou(MATRIX)[2])
    predicted = MATRIX.clone()
    predicted[0, 2] = 1
    assert class_iou(predicted)[2] == 0.0


def test_state_is_no_buffer_and_in_no_checkpoint() -> None:
    # Weight averaging swaps buffers around validation; the counts must not be swapped.
    metric = ConfusionMatrix(3)
    assert list(metric.buffers()) == []
    assert metric.state_dict() == {}


def boundary_by_hand(preds: torch.Tensor, truth: torch.Tensor, num_classes: int, reach: int) -> list[float]:
    """Counts pixel by pixel: the boundary of a binary mask is what erosion by `reach` 3x3 steps removes."""
    shared, either = [0] * num_classes, [0] * num_classes
    for p, t in zip(preds.tolist(), truth.tolist(), strict=True):
        height, width = len(t), len(t[0])
        pixels = [(y, x) for y in range(height) for x in range(width)]
        for k in range(num_classes):
            boundaries = []
            for labels in (p, t):
                full = {(y, x) for y, x in pixels if labels[y][x] == k and t[y][x] != 255}
                left = full
                for _ in range(reach):
                    around = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
                    left = {(y, x) for y, x in left if all((y + a, x + b) in left for a, b in around)}
                boundaries.append(full - left)
            shared[k] += len(boundaries[0] & boundaries[1])
            either[k] += len(boundaries[0] | boundaries[1])
    return [s / e if e else math.nan for s, e in zip(shared, either, strict=True)]


@pytest.mark.parametrize(("size", "ratio", "reach"), [((19, 26), 0.02, 1), ((19, 26), 0.1, 3), ((5, 23), 0.15, 4)])
def test_boundary_iou_equals_eroding_by_hand(size: tuple[int, int], ratio: float, reach: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 2, 4, *(-(-n // 5) for n in size), generator=generator)
    preds, truth = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=size).unflatten(0, (2, 2)).argmax(2)
    truth[0, :3, :7], truth[1, 2, 4] = 255, 255
    found = boundary_iou(preds, truth.to(torch.uint8), 5, dilation_ratio=ratio)
    expected = torch.tensor(boundary_by_hand(preds, truth, 5, reach), dtype=torch.float64)
    assert expected[:4].isfinite().all()
    assert math.isnan(expected[4])
    assert torch.allclose(found, expected, equal_nan=True)


def test_boundary_iou_sees_contours_that_iou_does_not() -> None:
    truth = torch.zeros(1, 100, 100, dtype=torch.long)
    truth[:, 10:90, 10:90] = 1
    preds = torch.zeros_like(truth)
    preds[:, 13:93, 13:93] = 1
    plain = class_iou(per_image_confusion(preds, truth, 2)[0])[1]
    near = boundary_iou(preds, truth, 2)[1]  # within 3 pixels
    assert float(plain) == pytest.approx(77**2 / (2 * 80**2 - 77**2))
    assert float(near) == pytest.approx(18 / (2 * 924 - 18))
    assert boundary_iou(truth, truth, 2).tolist() == [1, 1]


def test_boundary_iou_needs_a_positive_ratio() -> None:
    with pytest.raises(ValueError, match="dilation_ratio must be positive, got 0"):
        boundary_iou(MATRIX[None], MATRIX[None], 3, dilation_ratio=0)


@pytest.mark.parametrize("value", [3, 77, 254])
def test_a_label_that_is_no_class_is_not_counted_in_the_next_image(value: int) -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.uint8)
    mask[0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"train ids in \[0, 3\) or 255, got \[{value}\]"):
        per_image_confusion(torch.zeros(2, 4, 4, dtype=torch.int64), mask, 3)
