"""Find the groups of images that must stay in one fold, by the names of their files."""

from collections import Counter
from typing import NamedTuple

from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.data.groups import PatternGroups
from deeplab_lightning.errors import DataError

_PATTERNS = (  # from coarse to fine; what comes first and gives enough groups is taken
    r"^(.+)/",  # the folder, as of a patient
    r"^(.*?[A-Za-z].*?)(?:[_-]\d+)+(?:_(?:png|jpe?g))+\.rf\.",  # Roboflow's names: parts of one photo
    r"^(.*)_(?:png|jpe?g)\.rf\.",  # Roboflow's augmented copies
    r"^(.*?[A-Za-z].*?)(?:[_-][A-Za-z]{0,5}\d+)+\.\w+$",  # without all numbers at the end
    r"^(.*?)[_-]?\d+\.\w+$",  # without the last number
    r"^(.*?)_",
)
_CAMERA_WORDS = {  # that devices and programs begin all names with
    *("img", "image", "images", "imgs", "dsc", "dscn", "dscf", "pict", "photo", "pic", "picture", "frame", "mvimg"),
    *("pxl", "dji", "gopr", "sample", "train", "val", "test", "screenshot", "file", "input", "data"),
}
_ENOUGH = 5  # groups, one for each fold
_MIN_SHARE = 0.1  # of the images that share their group with others


class Sequences(NamedTuple):
    """Hold a pattern for `PatternGroups`, and the group of each image."""

    pattern: str
    labels: list[str]

    @property
    def sizes(self) -> Counter[str]:
        """Return the number of images of each group."""
        return Counter(self.labels)


def find_sequences(dataset: SegmentationDataset) -> Sequences | None:
    """Find the pattern that groups the images of a data set by what their names begin with; None if there is none.

    Args:
        dataset: The images.
    """
    found = [sequences for pattern in _PATTERNS if (sequences := _sequences(dataset, pattern)) is not None]
    if not found:
        return None
    enough = (sequences for sequences in found if len(sequences.sizes) >= _ENOUGH)
    chosen = next(enough, max(found, key=lambda sequences: len(sequences.sizes)))
    return min((own for own in found if own.labels == chosen.labels), key=lambda own: len(own.pattern))


def _sequences(dataset: SegmentationDataset, pattern: str) -> Sequences | None:
    """Group the images by a pattern; None if it does not match all, or its groups say nothing."""
    try:
        labels = PatternGroups(pattern).labels(dataset)
    except DataError:
        return None
    sequences = Sequences(pattern, labels)
    words = {"".join(filter(str.isalpha, label.lower())) for label in sequences.sizes}
    num_together = sum(size for size in sequences.sizes.values() if size > 1)
    if len(sequences.sizes) < 2 or num_together < _MIN_SHARE * len(labels) or words & _CAMERA_WORDS:
        return None
    return sequences


def group_sizes(pattern: str, dataset: SegmentationDataset) -> Counter[str]:
    """Return the number of images of each group of a pattern; none if it does not match all images.

    Args:
        pattern: Pattern for `PatternGroups`.
        dataset: The images.
    """
    try:
        return Counter(PatternGroups(pattern).labels(dataset))
    except DataError:
        return Counter()
