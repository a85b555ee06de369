"""Find what is suspicious in data sets: it can be read, and yet it is probably not what was meant."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deeplab_lightning.data.classes import IGNORE_INDEX
from deeplab_lightning.data.crops import find_crops
from deeplab_lightning.data.datasets.base import SegmentationDataset
from deeplab_lightning.data.palettes import palette_warnings
from deeplab_lightning.data.problems import Problem
from deeplab_lightning.data.scan import Statistics
from deeplab_lightning.data.stored_values import read_stored

_MAX_NAMED = 3  # images or classes in one sentence
_MUCH = 0.5  # of the pixels: more ignored ones are rarely meant
_NEARLY_ALL = 0.95  # of the values: at the lower end, a part of them is background
_MAX_OPENED = 16  # images whose values are looked at, evenly spaced
_MIN_STEPS = 16  # of 256, that the values of a channel should reach


class Part(NamedTuple):
    """Hold one data set of a configuration with the result of its scan."""

    dataset: SegmentationDataset
    statistics: Statistics


def find_warnings(parts: Mapping[str, Part], folds: Mapping[str, int] | None = None) -> list[str]:
    """Describe what is suspicious in data sets, one sentence each.

    Args:
        parts: The data sets by their keys in the configuration, such as `data.dataset`.
        folds: Fold of each image of the first data set; None without folds, or where groups keep copies together.
    """
    found = [f"{title}: {sentence}" for title, part in parts.items() for sentence in _part_warnings(part)]
    found += _shared_images(parts)
    if folds is not None and parts:
        title, part = next(iter(parts.items()))
        found += [f"{title}: {sentence}" for sentence in _images_in_several_folds(part, folds)]
    return found


def single_class_problem(part: Part) -> Problem | None:
    """Describe a data set with pixels of at most one class, from which nothing can be learned; None if there are more.

    Args:
        part: The data set that is trained on.
    """
    names = part.dataset.classes.names
    present = [name for name, count in zip(names, part.statistics.pixels.sum(axis=0), strict=True) if count]
    if len(present) > 1:
        return None
    found = f"only class {present[0]} has pixels" if present else "no pixel has a class"
    return Problem(
        part.dataset.source,
        f"{found}, so there is nothing to learn{_covered_by(part)}",
        "Check the class table and the masks, or set data.allow_single_class: true to train nevertheless.",
    )


def trained_images_warning(test: Part, trained: Part, title: str) -> str | None:
    """Describe test images that the training data hold too; None if there are none.

    Args:
        test: The data set that is tested.
        trained: The data set that the network was trained on, or on folds of.
        title: What names it, such as `data.dataset`.
    """
    known = images_by_digest(trained)
    shared = [names for digest, names in images_by_digest(test).items() if digest in known]
    if not shared:
        return None
    number, total = sum(map(len, shared)), int(test.statistics.is_valid.sum())
    return (
        f"{number} of {total} test images are also in {title} ({_some([names[0] for names in shared])}), which the "
        "training used, so the figures are better than on new images."
    )


def validation_warning(part: Part, indices: Sequence[int] | None = None) -> str | None:
    """Describe validation images with pixels of at most one class, which cannot choose the best epoch; else None.

    Args:
        part: The data set that is validated, or that a fold of is.
        indices: The images of the fold; None for all of the data set.
    """
    names = part.dataset.classes.names
    pixels = part.statistics.pixels if indices is None else part.statistics.pixels[indices]
    present = [name for name, count in zip(names, pixels.sum(axis=0), strict=True) if count]
    if len(present) > 1 or len(names) == 1:
        return None
    found = f"hold class {present[0]} alone" if present else "hold no pixel of a class"
    remedy = "another val_dataset" if indices is None else "fewer folds, or smaller groups"
    return (
        f"the {len(pixels)} validation images {found}, so their mIoU and best.ckpt say nothing of the other classes: "
        f"take {remedy}."
    )


def _range_warnings(part: Part) -> Iterator[str]:
    """Describe the channels whose values `value_range` cuts off, or that fill a small part of it."""
    image_format = part.dataset.image_format
    chosen = _opened(part)
    if image_format.value_range is None or not chosen:
        return
    counts = np.zeros((image_format.channels, 256), dtype=np.int64)  # of each value; the images may be large
    for index in chosen:
        for channel, values in enumerate(part.dataset.open_image(index).pixels().numpy()):
            counts[channel] += np.bincount(values.reshape(-1), minlength=256)
    for channel, own in enumerate(counts):
        high, low, steps = own[255] / own.sum(), own[0] / own.sum(), int(np.ptp(np.flatnonzero(own)))
        where = f"channel {channel} of {len(chosen)} images"
        if high > _MUCH or low > _NEARLY_ALL:
            share, end = (high, "upper") if high > _MUCH else (low, "lower")
            yield f"{where}: {share:.0%} of the values reach the {end} end of data.image_format.value_range."
        elif steps < _MIN_STEPS:
            yield f"{where}: the values fill {steps + 1} of 256 steps of data.image_format.value_range: it is too wide."


def _nodata_warnings(part: Part) -> Iterator[str]:
    """Describe values that stand for no measurement, where the format names none."""
    if part.dataset.image_format.value_range is None or part.dataset.image_format.nodata is not None:
        return
    shares: list[float] = []  # of the values without measurement; the images may be too large to keep them all
    missing: list[float] = []
    for index in _opened(part):
        try:
            image = read_stored(part.dataset.paths[index])
        except (OSError, ValueError):  # a data set of the user reads it in another way
            continue
        shares.append(1 - float(image.is_measured.mean()))
        missing += [] if image.nodata is None else [image.nodata]
    if missing:
        value, share = missing[0], np.mean(shares)
        yield (
            f"{len(missing)} of {len(shares)} images hold {value:g} ({share:.1%} of all values), which mostly means "
            f"that nothing was measured; set data.image_format.nodata: {'.nan' if np.isnan(value) else value}."
        )


def _opened(part: Part) -> list[int]:
    """Choose images whose values are looked at."""
    valid = np.flatnonzero(part.statistics.is_valid)
    chosen: list[int] = valid[np.linspace(0, len(valid) - 1, min(len(valid), _MAX_OPENED)).astype(int)].tolist()
    return chosen


def _part_warnings(part: Part) -> Iterator[str]:
    """Describe what is suspicious in one data set."""
    dataset, statistics = part
    totals = statistics.pixels.sum(axis=0)
    absent = [name for name, count in zip(dataset.classes.names, totals, strict=True) if not count]
    yield from _range_warnings(part)
    yield from _nodata_warnings(part)
    mix_up = _id_mix_up(part)
    if mix_up:
        yield mix_up
    if absent and statistics.is_valid.any():
        verb = "class has" if len(absent) == 1 else "classes have"
        yield f"{len(absent)} {verb} no pixel in any mask: {_some(absent)}{_covered_by(part)}."
    elif statistics.ignored_share > _MUCH:
        yield f"{_ignored(statistics)} of the pixels are ignored."
    void = statistics.is_valid & (statistics.pixels.sum(axis=1) == 0)
    if void.any():
        yield f"{_images(part, void)} ignored throughout."
    if statistics.is_turned.any():
        yield (
            f"{_images(part, statistics.is_turned)} turned upright by an EXIF tag; the labels must be drawn on the "
            "upright image. Look at some with `deeplab data show`."
        )
    if invisible := int(statistics.invisible.sum()):
        yield f"{invisible} of {int(statistics.objects.sum())} objects cover no pixel."
    yield from palette_warnings(part.dataset, part.statistics)
    yield from _copies(part)


def _ignored(statistics: Statistics) -> str:
    """Describe the ignored share of the pixels, with the raw values behind it."""
    total = max(int(statistics.image_pixels[statistics.is_valid].sum()), 1)
    shares = {value: count / total for value, count in statistics.ignored.items()}
    values = ", ".join(f"value {value}: {share:.1%}" for value, share in list(shares.items())[:_MAX_NAMED])
    return f"{statistics.ignored_share:.1%}{f' ({values})' if values else ''}"


def _covered_by(part: Part) -> str:
    """Say which ignored value may stand for classes without pixels; an empty string if nothing is ignored."""
    if part.statistics.ignored_share == 0:
        return ""
    remedy = ""
    if any(value in part.dataset.classes.ignore_ids for value in part.statistics.ignored):
        value = next(v for v in part.statistics.ignored if v in part.dataset.classes.ignore_ids)
        remedy = f"; if value {value} means a class, name it in classes.raw_ids and not in classes.ignore_ids"
    return f"; {_ignored(part.statistics)} of the pixels are ignored{remedy}"


def _id_mix_up(part: Part) -> str | None:
    """Recognise masks that hold train ids where the class table expects raw ids."""
    classes, values = part.dataset.classes, part.statistics.raw_values
    raw_ids = dict(classes.raw_ids or {})
    is_identity = all(raw == train for raw, train in raw_ids.items())
    train_ids = {*range(classes.num_classes), IGNORE_INDEX}
    if is_identity or not part.statistics.ignored or not set(values) <= train_ids or set(values) <= set(raw_ids):
        return None
    return (
        f"the masks hold the values {_ranges(values)}, which look like train ids, but the class table expects raw ids "
        f"({_ranges(sorted(raw_ids))}), so classes are mixed up. Use the masks with raw ids (mask_suffix), or leave "
        "classes.raw_ids out."
    )


def _copies(part: Part) -> Iterator[str]:
    """Describe identical images within a data set."""
    groups = [names for names in images_by_digest(part).values() if len(names) > 1]
    if groups:
        copies = sum(len(names) - 1 for names in groups)
        examples = "; ".join(" = ".join(names[:_MAX_NAMED]) for names in groups[:_MAX_NAMED])
        yield f"{copies} images are copies of others: {examples}{'; ...' if len(groups) > _MAX_NAMED else ''}."


def _shared_images(parts: Mapping[str, Part]) -> Iterator[str]:
    """Describe images that are in several data sets."""
    titles, known = list(parts), {title: images_by_digest(part) for title, part in parts.items()}
    for position, title in enumerate(titles):
        for earlier in titles[:position]:
            shared = [(known[title][d], known[earlier][d]) for d in known[title] if d in known[earlier]]
            if shared:
                examples = ", ".join(f"{own[0]} = {other[0]}" for own, other in shared[:_MAX_NAMED])
                count = sum(len(own) for own, _ in shared)
                yield f"{title}: {count} images are also in {earlier}: {examples}{_more(len(shared))}."


def extra_images_held_out(title: str, images: Mapping[int, str], held_out: Mapping[str, Part]) -> str | None:
    """Describe further images that a fold may hold out; None if there are none.

    Every fold trains on further images, so they must not be validated or tested. Copies count, whatever their names.

    Args:
        title: What names the further images, such as `data.extra_datasets[0]`.
        images: Their keys by the hash of their pixels.
        held_out: The data sets that are validated or tested, by their keys in the configuration.
    """
    for other, part in held_out.items():
        known = images_by_digest(part)
        if shared := [(name, known[digest][0]) for digest, name in images.items() if digest in known]:
            examples = ", ".join(" = ".join(pair) for pair in shared[:_MAX_NAMED])
            return (
                f"{title}: {len(shared)} images are also in {other}, which is validated or tested: {examples}"
                f"{_more(len(shared))}. Every fold would train on them: take them out of {title}."
            )
    return None


def _images_in_several_folds(part: Part, folds: Mapping[str, int]) -> Iterator[str]:
    """Describe copies and crops of one image that are in different folds."""
    groups = [names for names in images_by_digest(part).values() if len({folds.get(name) for name in names}) > 1]
    if groups:
        yield (
            f"{len(groups)} images have copies in another fold, so they validate what they trained on: "
            f"{'; '.join(' = '.join(names[:_MAX_NAMED]) for names in groups[:_MAX_NAMED])}{_more(len(groups))}. "
            "Set data.groups to DuplicateGroups."
        )
    crops = find_crops(part.statistics.names, part.statistics.image_pixels.tolist())
    divided = [own for own in crops if len({folds.get(name) for name in own.names}) > 1]
    if divided:
        yield (
            f"crops or copies of {len(divided)} photos are in several folds, so they validate what they trained on: "
            f"{'; '.join(', '.join(own.names[:_MAX_NAMED]) for own in divided[:_MAX_NAMED])}{_more(len(divided))}. "
            f"Set data.groups to PatternGroups with the pattern '{divided[0].pattern}'."
        )


def images_by_digest(part: Part) -> dict[int, list[str]]:
    """List the names of the images with the same pixels, by the hash of the pixels."""
    found: dict[int, list[str]] = defaultdict(list)
    statistics = part.statistics
    for name, digest, is_valid in zip(statistics.names, statistics.digests.tolist(), statistics.is_valid, strict=True):
        if is_valid:
            found[digest].append(name)
    return found


def _images(part: Part, is_meant: npt.NDArray[np.bool_]) -> str:
    """Count and name images, followed by a verb: `2 images (a, b) are`."""
    names = [part.statistics.names[index] for index in np.flatnonzero(is_meant)]
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({_some(names)}) {'are' if len(names) > 1 else 'is'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + _more(len(names))


def _more(count: int) -> str:
    return f" and {count - _MAX_NAMED} more" if count > _MAX_NAMED else ""


def _ranges(values: Sequence[int]) -> str:
    """Write ascending numbers with their runs shortened: 0-18, 255."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
