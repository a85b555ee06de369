"""Find the confidence from which on a class is right, against a search over all pixels."""

import numpy as np
import pytest
import torch

from deeplab_lightning.errors import UserError
from deeplab_lightning.inference.pseudo_labels import ClassConfidences, find_cuts


def images(seed: int, num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities and a mask that agree more often where the probabilities are confident."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_classes, 40, 50, generator=generator) * 2
    mask = torch.multinomial(logits.flatten(1).T.softmax(1), 1, generator=generator).reshape(40, 50)
    mask[:3] = 255
    return logits.softmax(0), mask.to(torch.uint8)


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.9, 0.97])
def test_cuts_are_the_lowest_that_reach_the_precision(precision: float) -> None:
    counts, pixels = ClassConfidences(3), []
    for seed in range(4):
        probabilities, mask = images(seed)
        counts.add(probabilities, mask.numpy())
        confidence, labels = probabilities.max(0)
        pixels.append(torch.stack([confidence[mask != 255], labels[mask != 255], mask[mask != 255]]))
    confidence, labels, truth = torch.cat(pixels, dim=1).double().numpy()
    cuts = find_cuts(counts, precision)
    for train_id in range(3):
        own, is_right = confidence[labels == train_id], (truth == labels)[labels == train_id]
        reached = [
            b / 256 for b in range(256) if (own >= b / 256).any() and is_right[own >= b / 256].mean() >= precision
        ]
        assert cuts.cuts[train_id] == min(reached)
        kept = own >= min(reached)
        assert cuts.precision[train_id] == pytest.approx(is_right[kept].mean())
        assert cuts.kept[train_id] == pytest.approx(kept.mean())


def test_a_class_that_is_never_right_is_never_labelled() -> None:
    counts = ClassConfidences(3)
    probabilities = torch.zeros(3, 4, 4)
    probabilities[0, :2], probabilities[1, 2:] = 1, 1
    mask = torch.zeros(4, 4, dtype=torch.uint8)  # class 1 is predicted wrongly, class 2 never
    counts.add(probabilities, mask.numpy())
    cuts = find_cuts(counts, 0.9)
    assert cuts.cuts.tolist() == [255 / 256, np.inf, np.inf] or cuts.cuts.tolist() == [0, np.inf, np.inf]
    labels = cuts.apply(probabilities)
    assert labels[:2].unique().tolist() == [0]
    assert labels[2:].unique().tolist() == [255]


@pytest.mark.parametrize("precision", [0, 1, -1, float("nan")])
def test_other_precisions_are_refused(precision: float) -> None:
    with pytest.raises(UserError, match="--precision must be in"):
        find_cuts(ClassConfidences(2), precision)
