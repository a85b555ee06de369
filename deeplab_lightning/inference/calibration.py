"""Fit the temperature that makes probabilities agree with the share of pixels that are right (Guo et al. 2017)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.metrics.calibration import NUM_BINS, at_every_fourth

Floats = npt.NDArray[np.float64]
_RANGE = (0.05, 20.0)  # of temperatures
_MAX_VALUES = 1 << 25  # log-probabilities that are kept of all images, 128 MiB
_MAX_PIXELS = 4096  # of an image


class PixelSample(NamedTuple):
    """Hold log-probabilities and labels of N pixels of one or several images.

    Attributes:
        log_probabilities: (N, K) float32.
        labels: (N,) train ids.
    """

    log_probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]

    @classmethod
    def drawn(
        cls, probabilities: Tensor, mask: npt.NDArray[np.uint8], count: int, rng: np.random.Generator
    ) -> "PixelSample":
        """Choose pixels of one image at random.

        Args:
            probabilities: (K, H, W) float.
            mask: (H, W) train ids; ignored pixels are not chosen.
            count: Number of pixels; all if the image has fewer.
            rng: Source of the choice.
        """
        places = np.flatnonzero(mask != IGNORE_INDEX)
        if len(places) > count:
            places = rng.choice(places, count, replace=False)
        chosen = probabilities.flatten(1)[:, torch.from_numpy(places).to(probabilities.device)].T.float()
        logs = chosen.clamp_min(torch.finfo(torch.float32).tiny).log().cpu().numpy()
        return cls(logs, mask.reshape(-1)[places])

    @classmethod
    def joined(cls, parts: Sequence["PixelSample"]) -> "PixelSample":
        """Join the pixels of at least one sample."""
        logs, labels = zip(*parts, strict=True)
        return cls(np.concatenate(logs), np.concatenate(labels))


class PixelCollector:
    """Collect pixels of the images of an evaluation, from those that `ConfidenceCounts` counts.

    Args:
        num_images: Number of images, which limits how many pixels of each are kept.
        num_classes: Number of classes K.
        seed: Seed of the choice; processes need different ones.

    Attributes:
        samples: The pixels of each image by its key.
    """

    def __init__(self, num_images: int, num_classes: int, *, seed: int = 0) -> None:
        self._count, self._rng = pixels_per_image(num_images, num_classes), np.random.default_rng(seed)
        self.samples: dict[str, PixelSample] = {}

    def add(self, names: Sequence[str], logits: Tensor, mask: Tensor, *, share: float = 1.0) -> None:
        """Add pixels of images, or of parts of them.

        Args:
            names: Keys of the B images.
            logits: (B, K, h, w) float, at the size of the mask or before the resize to it.
            mask: (B, H, W) integer in [0, K), or 255 for ignored pixels.
            share: Share of the image that is added.
        """
        values, target = at_every_fourth(logits, mask)
        count = max(1, round(self._count * share))
        for name, own, labels in zip(names, values.float().softmax(dim=1), target.cpu().numpy(), strict=True):
            drawn = PixelSample.drawn(own, labels.astype(np.uint8), count, self._rng)
            self.samples[name] = PixelSample.joined([self.samples[name], drawn]) if name in self.samples else drawn


def pixels_per_image(num_images: int, num_classes: int) -> int:
    """Return how many pixels of each image are kept, so that those of all images take at most 128 MiB."""
    return max(1, min(_MAX_PIXELS, _MAX_VALUES // (max(num_images, 1) * num_classes)))


def fit_temperature(sample: PixelSample) -> float:
    """Find the temperature with the lowest mean negative log-likelihood, from 0.05 to 20.

    Probabilities of a temperature T are the softmax of the log-probabilities divided by T. For one network that is the
    softmax of its logits divided by T. The mean of several networks is scaled after it was taken, so that the most
    probable class stays the same there too.

    Args:
        sample: At least one pixel.
    """
    low, high = map(math.log, _RANGE)
    found = minimize_scalar(
        lambda log_t: _negative_log_likelihood(sample, math.exp(log_t)), bounds=(low, high), method="bounded"
    )
    return math.exp(float(found.x))


def _negative_log_likelihood(sample: PixelSample, temperature: float) -> float:
    """Compute the mean negative log-likelihood of the labels, in nats per pixel."""
    scaled = log_softmax(sample.log_probabilities / np.float32(temperature), axis=1)
    return float(-np.take_along_axis(scaled, sample.labels[:, None].astype(np.intp), axis=1).mean(dtype=np.float64))


class Reliability(NamedTuple):
    """Hold sums over the pixels in each bin of probability.

    Attributes:
        top: (3, 15) number of pixels, sum of the highest probabilities, number of pixels whose label that class is.
        classes: (3, K, 15) number of pixels, sum of the class's probabilities, number of pixels with its label.
        log_likelihood: Sum of the logarithms of the labels' probabilities.
    """

    top: Floats
    classes: Floats
    log_likelihood: float

    @classmethod
    def of(cls, sample: PixelSample, temperature: float = 1.0) -> "Reliability":
        """Count the pixels of a sample by their probabilities at a temperature."""
        logs = log_softmax(sample.log_probabilities / np.float32(temperature), axis=1)
        probabilities = np.exp(logs)
        best = probabilities.argmax(axis=1)
        top = _binned(probabilities.max(axis=1), best == sample.labels)
        classes = [_binned(probabilities[:, k], sample.labels == k) for k in range(probabilities.shape[1])]
        own = np.take_along_axis(logs, sample.labels[:, None].astype(np.intp), axis=1)
        return cls(top, np.stack(classes, axis=1), float(own.sum(dtype=np.float64)))

    @classmethod
    def summed(cls, parts: Sequence["Reliability"]) -> "Reliability":
        """Add up the pixels of at least one part."""
        tops, classes, logs = zip(*parts, strict=True)
        return cls(np.sum(tops, axis=0), np.sum(classes, axis=0), float(sum(logs)))

    @property
    def ece(self) -> float:
        """Return the expected calibration error, in [0, 1]: the mean distance of confidence and accuracy of a bin."""
        return _error(self.top)

    @property
    def class_ece(self) -> list[float]:
        """Return that error of each class's probability; nan for a class without labels."""
        return [_error(own) if own[2].sum() else math.nan for own in self.classes.transpose(1, 0, 2)]

    @property
    def nll(self) -> float:
        """Return the mean negative log-likelihood in nats per pixel."""
        return -self.log_likelihood / float(self.top[0].sum())


def _binned(probabilities: npt.NDArray[np.float32], is_right: npt.NDArray[np.bool_]) -> Floats:
    """Return (3, 15) number, sum of probabilities and number of right pixels of each bin (low, high]."""
    bins = np.clip(np.ceil(probabilities * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    weights = (np.ones(len(bins)), probabilities, is_right)
    return np.stack([np.bincount(bins, weights=own, minlength=NUM_BINS) for own in weights])


def _error(bins: Floats) -> float:
    count, probability, right = bins
    return float(np.abs(probability - right).sum() / count.sum())


class Calibration(NamedTuple):
    """Hold a temperature, and what it brings on pixels that it was not fitted on.

    Attributes:
        temperature: Fitted on all pixels.
        temperatures: That of each group of images, fitted on the pixels of the others.
        before: The held-out pixels at temperature 1.
        after: The same pixels at the temperature of their group.
    """

    temperature: float
    temperatures: list[float]
    before: Reliability
    after: Reliability


def calibrated(groups: Sequence[PixelSample]) -> Calibration:
    """Fit the temperature, and cross-fit it: each group of images gets the temperature of the other groups.

    Args:
        groups: At least two groups of images, such as the folds.
    """
    others = [PixelSample.joined([*groups[:i], *groups[i + 1 :]]) for i in range(len(groups))]
    temperatures = [fit_temperature(own) for own in others]
    before = Reliability.summed([Reliability.of(own) for own in groups])
    after = Reliability.summed([Reliability.of(own, t) for own, t in zip(groups, temperatures, strict=True)])
    return Calibration(fit_temperature(PixelSample.joined(groups)), temperatures, before, after)
