"""Rank regions and images by the evidence against their labels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deeplab_lightning.inference.out_of_fold import HeldOut
from deeplab_lightning.suspects.evidence import Counts, Region, find_regions

_PRIOR = 0.05  # added to shares of pixels, so that a pair of classes that was never seen is not infinitely unlikely


class Suspect(NamedTuple):
    """Hold a region with the evidence against its label.

    Attributes:
        image: Key of the image.
        score: See `rank`; positive.
        region: The region.
    """

    image: str
    score: float
    region: Region


class SuspectImage(NamedTuple):
    """Hold an image with the evidence against its labels.

    Attributes:
        image: Key of the image.
        score: The highest score of its regions; 0 without any.
        regions: Number of its regions.
    """

    image: str
    score: float
    regions: int


class Ranking(NamedTuple):
    """Hold the most suspicious regions, and all images.

    Attributes:
        suspects: The regions with the highest scores, in order.
        num_suspects: Number of all regions with a positive score.
        images: All images that were predicted, in the order of their scores.
    """

    suspects: list[Suspect]
    num_suspects: int
    images: list[SuspectImage]

    def describe(self) -> str:
        """Say how many regions there are, in one sentence."""
        images = f"{len(self.images)} held-out images"
        if not self.suspects:
            return f"No label of the {images} is contradicted by a region of a clear size."
        return f"The {len(self.suspects)} most suspicious of {self.num_suspects} contradicted regions in {images}."


def rank(predictions: Iterable[HeldOut], *, limit: int, min_area: int) -> Ranking:
    """Rank the regions whose labels the networks contradict.

    The score of a region is the product of three factors:

    - The mean over its core of the predicted class's probability minus the label's.
    - What the networks confuse anyway: the logarithm of the ratio of two shares of pixels, counted in all other images:
      those labelled as the predicted class that are predicted so, to those with the region's label that are. It is near
      0 for a pair of classes that the networks do not tell apart, and for labels that they mostly miss. Confident
      learning (Northcutt et al. 2021) has thresholds per class for the same purpose.
    - The square root of the core's share of the image.

    Regions whose score is not positive are left out.

    Args:
        predictions: The held-out images, of which one at a time is in memory.
        limit: Number of regions to return.
        min_area: Pixels of the smallest region.
    """
    regions: dict[str, list[Region]] = {}
    counts: dict[str, Counts] = {}
    for image in predictions:
        regions[image.name], counts[image.name] = find_regions(image.probabilities, image.mask, min_area=min_area)
    return _ranked(regions, counts, limit)


def _ranked(regions: Mapping[str, Sequence[Region]], counts: Mapping[str, Counts], limit: int) -> Ranking:
    total = sum(counts.values())
    suspects, images = [], []
    for name, own in regions.items():
        others = np.asarray(total - counts[name])
        found = [Suspect(name, _score(region, others), region) for region in own]
        found = [suspect for suspect in found if suspect.score > 0]
        suspects += found
        images.append(SuspectImage(name, max((suspect.score for suspect in found), default=0.0), len(found)))
    suspects.sort(key=lambda own: (-own.score, own.image, own.region.box))
    images.sort(key=lambda own: (-own.score, own.image))
    return Ranking(suspects[:limit], len(suspects), images)


def _score(region: Region, counts: Counts) -> float:
    """Compute the score of a region from the pixel counts (K, K) of other images, rows label, columns prediction."""
    shares = counts[:, region.predicted] / np.maximum(counts.sum(axis=1), 1)  # (K,) predicted so, of each label
    ratio = np.log(shares[region.predicted] + _PRIOR) - np.log(shares[region.label] + _PRIOR)
    return float(region.margin * ratio * np.sqrt(region.core))
