"""Compare the palettes of mask files with each other and with the class table."""

from collections.abc import Iterator, Mapping

from deeplab_lightning.data.classes import ClassTable, voc_palette
from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.data.scan import Statistics

_NUM_COLORS = 256  # of a palette
_MAX_PALETTES = 50  # that are compared


def palette_warnings(dataset: SegmentationDataset, statistics: Statistics) -> Iterator[str]:
    """Describe masks whose palettes give one value different colours, or the colour of another class.

    Args:
        dataset: Data set of the masks.
        statistics: What the scan of it found.
    """
    examples = {int(digest): index for index, digest in reversed(list(enumerate(statistics.palettes))) if digest}
    colors: dict[int, tuple[bytes, str]] = {}
    for index in sorted(examples.values())[:_MAX_PALETTES]:
        try:
            facts = dataset.inspect_mask(index)
        except (OSError, ValueError):  # the file changed since the scan
            continue
        for value in facts.counts if len(examples) > 1 else statistics.raw_values:  # one palette is that of all
            color = (facts.palette or b"")[3 * value : 3 * value + 3]
            known, name = colors.setdefault(value, (color, statistics.names[index]))
            if known != color and len(color) == 3:
                yield (
                    f"the palettes of the masks differ: value {value} is {tuple(known)} in {name} and {tuple(color)} "
                    f"in {statistics.names[index]} (R, G, B). Labels are the values, not the colours."
                )
                return
    full = {value: tuple(color) for value, (color, _) in colors.items() if len(color) == 3}
    if other := _class_of_its_color(dataset.classes, full):
        yield other


def _class_of_its_color(classes: ClassTable, colors: Mapping[int, tuple[int, ...]]) -> str | None:
    """Describe a value of the masks that means one class in the table and has the colour of another one.

    Args:
        classes: Class table. One without colours has VOC's, and nothing is said of masks with VOC's palette then.
        colors: Raw value -> (R, G, B) in the palettes of the masks; empty if they have none.
    """
    own = classes.colors or ()
    standard = voc_palette(_NUM_COLORS)
    if list(own) == standard[: len(own)] and all(color == standard[value] for value, color in colors.items()):
        return None
    for value, color in colors.items():
        meant = (classes.raw_ids or {}).get(value)
        if meant is not None and color in own and own[meant] != color:
            return (
                f"value {value} means {classes.names[meant]}, but the palette of the masks gives it {color}, the "
                f"colour of {classes.names[own.index(color)]} in classes.colors. Labels are the values: name the "
                "classes in their order, or map the values with classes.raw_ids."
            )
    return None
