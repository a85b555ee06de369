import math

import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from deeplab_lightning.metrics import ConfusionMatrix, class_iou, image_matrices, iou_by_name, summarize

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
    metric.update(image_matrices(preds, truth, 5))
    assert metric.compute().tolist() == confusion_matrix(truth.flatten(), preds.flatten(), labels=range(5)).tolist()
    expected = jaccard_score(truth.flatten(), preds.flatten(), average=None)
    assert torch.allclose(class_iou(metric.compute()), torch.from_numpy(expected))


def test_counts_do_not_depend_on_the_batches() -> None:
    preds, truth = random_pair()
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(image_matrices(preds, truth, 5))
    for p, t in zip(preds, truth, strict=True):
        parts.update(image_matrices(p[None], t[None].to(torch.uint8), 5))
    assert torch.equal(whole.compute(), parts.compute())


def test_each_picture_is_counted_apart() -> None:
    preds, truth = random_pair()
    apart = image_matrices(preds, truth, 5)
    for index in range(len(preds)):
        assert torch.equal(apart[index], image_matrices(preds[index : index + 1], truth[index : index + 1], 5)[0])
        assert int(apart[index].sum()) == truth[index].numel()


def test_ignored_pixels_count_nowhere() -> None:
    preds, truth = random_pair()
    truth[0] = 255
    metric = ConfusionMatrix(5)
    metric.update(image_matrices(preds, truth.to(torch.uint8), 5))
    assert int(metric.compute().sum()) == truth[1:].numel()


def test_figures_by_hand() -> None:
    figures = summarize(MATRIX)
    assert math.isclose(figures["miou"], (3 / 6 + 4 / 7) / 2)  # the third class is absent
    assert math.isclose(figures["pixel_accuracy"], 7 / 10)
    assert math.isclose(figures["mean_accuracy"], (3 / 4 + 4 / 6) / 2)
    assert math.isclose(figures["fw_iou"], 0.4 * 3 / 6 + 0.6 * 4 / 7)
    assert math.isclose(figures["dice"], (6 / 9 + 8 / 11) / 2)


def test_absent_classes_are_nan_and_predicted_ones_zero() -> None:
    assert math.isnan(iou_by_name(MATRIX, "abc")["c"])
    predicted = MATRIX.clone()
    predicted[0, 2] = 1
    assert iou_by_name(predicted, "abc")["c"] == 0.0


def test_state_is_no_buffer_and_in_no_checkpoint() -> None:
    # Weight averaging swaps buffers around validation; counts must stay.
    metric = ConfusionMatrix(3)
    assert list(metric.buffers()) == []
    assert metric.state_dict() == {}
