"""Temperatures and calibration errors, against known factors and torchmetrics."""

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error

from deeplab_lightning.drawing import draw_reliability
from deeplab_lightning.inference.calibration import (
    PixelSample,
    Reliability,
    calibrated,
    fit_temperature,
    pixels_per_image,
)
from deeplab_lightning.inference.calibration_file import read_temperature
from deeplab_lightning.labels import at_temperature
from deeplab_lightning.metrics.calibration import ConfidenceCounts
from deeplab_lightning.resizing import resize

K = 5


def sample(factor: float, *, seed: int = 0, count: int = 20_000) -> PixelSample:
    """Draw labels from the softmax of logits, and give the log-probabilities of the logits times a factor."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (count, K)))
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    return PixelSample((logits * factor).log_softmax(1).float().numpy(), labels.to(torch.uint8).numpy())


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_factor_of_the_logits_is_recovered(factor: float) -> None:
    assert fit_temperature(sample(factor)) == pytest.approx(factor, rel=0.03)


def test_calibrated_probabilities_agree_with_the_labels_of_other_images() -> None:
    found = calibrated([sample(3.0, seed=seed, count=5000) for seed in range(4)])
    assert found.temperature == pytest.approx(3, rel=0.03)
    assert found.temperatures == pytest.approx([3] * 4, rel=0.1)
    assert found.before.ece > 0.15
    assert found.after.ece < 0.02
    assert found.after.nll < found.before.nll
    assert max(found.after.class_ece) < 0.02 < min(found.before.class_ece)


def test_a_group_has_the_temperature_of_the_others() -> None:
    """Of which one is confident by mistake: its own labels must not repair its probabilities."""
    groups = [sample(1.0, seed=0), sample(1.0, seed=1), sample(4.0, seed=2)]
    found = calibrated(groups)
    assert found.temperatures[2] == pytest.approx(1, rel=0.03)
    assert min(found.temperatures[:2]) > 1.3
    parts = [Reliability.of(own, t) for own, t in zip(groups, found.temperatures, strict=True)]
    assert found.after.ece == Reliability.summed(parts).ece


def test_the_error_is_that_of_torchmetrics() -> None:
    own = sample(2.0)
    probabilities, labels = torch.from_numpy(own.log_probabilities).exp(), torch.from_numpy(own.labels).long()
    expected = multiclass_calibration_error(probabilities, labels, K, n_bins=15, norm="l1")
    assert Reliability.of(own).ece == pytest.approx(float(expected), abs=1e-6)
    nll = torch.nn.functional.nll_loss(probabilities.double().log(), labels)
    assert Reliability.of(own).nll == pytest.approx(float(nll), abs=1e-5)


def test_the_error_of_a_class_is_that_of_its_probability() -> None:
    own = sample(2.0, count=3000)
    found = Reliability.of(own).class_ece
    for k in range(K):
        probabilities, is_class = np.exp(own.log_probabilities[:, k]), own.labels == k
        error, edges = 0.0, np.linspace(0, 1, 16)
        for low, high in pairwise(edges):
            inside = (probabilities > low) & (probabilities <= high)
            if inside.any():
                error += abs(probabilities[inside].mean() - is_class[inside].mean()) * inside.mean()
        assert found[k] == pytest.approx(error, abs=1e-6)
    assert np.isnan(Reliability.of(PixelSample(own.log_probabilities, np.zeros(3000, np.uint8))).class_ece[1])


@pytest.mark.parametrize("size", [(5, 7), (41, 53)], ids=["coarse", "full"])
def test_the_metric_counts_the_probabilities_at_the_size_of_the_mask(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(3, K, *size) * 3, torch.randint(0, K, (3, 41, 53))
    mask[:, :7] = 255
    counts = ConfidenceCounts()
    for part, own in zip(logits.split([2, 1]), mask.split([2, 1]), strict=True):
        counts.update(part, own)
    probabilities = resize(logits, (41, 53)).softmax(1)[:, :, ::4, ::4].movedim(1, -1).reshape(-1, K)
    target = mask[:, ::4, ::4].reshape(-1)
    expected = multiclass_calibration_error(probabilities, target, K, n_bins=15, norm="l1", ignore_index=255)
    assert float(counts.compute()) == pytest.approx(float(expected), abs=1e-5)
    counts.reset()
    counts.update(logits, torch.full_like(mask, 255))
    assert torch.isnan(counts.compute())


def test_a_temperature_changes_no_label_and_sums_to_one() -> None:
    probabilities = torch.rand(K, 30, 40).pow(4)
    probabilities /= probabilities.sum(0)
    for temperature in (0.3, 2.5):
        found = at_temperature(probabilities, temperature)
        assert torch.equal(found.argmax(0), probabilities.argmax(0))
        assert torch.allclose(found.sum(0), torch.ones(30, 40))
        expected = probabilities.pow(1 / temperature)
        assert torch.allclose(found, expected / expected.sum(0), atol=1e-6)


def test_pixels_are_chosen_among_those_with_labels() -> None:
    mask = np.full((20, 30), 255, dtype=np.uint8)
    mask[3:5, 4:9] = 2
    probabilities = torch.rand(K, 20, 30)
    found = PixelSample.drawn(probabilities, mask, 4, np.random.default_rng(0))
    assert found.labels.tolist() == [2] * 4
    inside = {round(float(value), 5) for value in probabilities[1, 3:5, 4:9].reshape(-1)}
    assert {round(float(value), 5) for value in np.exp(found.log_probabilities[:, 1])} <= inside
    assert len(PixelSample.drawn(probabilities, mask, 100, np.random.default_rng(0)).labels) == 10
    assert pixels_per_image(100_000, 150) * 100_000 * 150 * 4 <= 1 << 27
    assert pixels_per_image(10_000_000, 150) == 1


def test_a_temperature_is_a_number_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"temperature": 1.7}))
    assert read_temperature("2") == 2
    assert read_temperature(str(path)) == 1.7
    for given, text in (("0", "must be a positive number"), ("nan", "must be a positive"), ("no.json", "no such file")):
        with pytest.raises(ValueError, match=text):
            read_temperature(given)
    for content in ("[]", '{"temperature": null}', "{"):
        path.write_text(content)
        with pytest.raises(ValueError, match="damaged, or not written by"):
            read_temperature(str(path))


def test_the_diagram_takes_any_number_of_classes() -> None:
    for count in (1, 60):
        classes = np.random.default_rng(0).random((3, count, 15))
        file = io.BytesIO()
        draw_reliability({"before": classes[:, 0]}, classes, [f"class {k}" for k in range(count)], file)
        assert Image.open(file).width > 500
