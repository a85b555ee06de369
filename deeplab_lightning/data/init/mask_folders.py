"""Find the folders of images and of their masks."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.images import IMAGE_SUFFIXES
from deeplab_lightning.data.init.any_text import read_any_text
from deeplab_lightning.data.init.layout import Layout, ordered_parts, part_of, without_part
from deeplab_lightning.data.mask_files import read_raw_mask
from deeplab_lightning.errors import DataError

_MASK_WORDS = re.compile(r"mask|label|annot|segm|ground_?truth|(?<![a-z])gt")
_IMAGE_WORDS = re.compile(r"image|img|photo|picture|rgb|jpe?g")
_INSTANCE_WORDS = re.compile(r"object|instance")  # as in VOC's SegmentationObject
_COPIES = (".jpg", ".jpeg", ".npy")  # of masks that are there as PNG, too
_NUM_SAMPLES = 4  # files that are opened to tell masks from images
_MAX_VALUES = 64  # different values or colours of a mask; a photo has more
_MIN_SHARE = 0.5  # of the files that have a partner
_MIN_LISTED = 0.9  # of the lines of a list that name an image with a mask


class _Files(NamedTuple):
    """Hold the images or the masks of one folder.

    Attributes:
        folder: The folder, relative to the data set's.
        suffix: Suffix of most file names, in lower case.
        stems: File names without suffix.
    """

    folder: str
    suffix: str
    stems: frozenset[str]


class _Pair(NamedTuple):
    """Hold the arguments that select images and masks, and the number of images with a mask."""

    images: str
    masks: str
    image_suffix: str | None
    mask_suffix: str

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `MaskFolderDataset`."""
        return self._asdict()


def mask_layouts(index: FolderIndex) -> list[Layout]:
    """List the data sets of images and masks, where the folders of several parts are one data set.

    Args:
        index: The files of the folder.
    """
    images, masks = _sorted_out(index)
    copies = [files for files in masks if _is_copy(files, masks)]
    masks = [files for files in masks if files not in copies]
    pairs: dict[str | None, list[_Pair]] = defaultdict(list)
    alone = [f"{files.folder} has *{files.suffix} files of masks that are there as PNG; left out." for files in copies]
    stems: set[str] = set()
    for files in images:
        partners = _partners(files, masks)
        if not partners:
            alone.append(f"{len(files.stems)} images in {files.folder} have no masks and are left out.")
        for partner, tail in partners:
            pair = _pair(files, partner, tail)
            known = pairs[part_of(pair.images) or part_of(pair.masks)]
            known += [pair] if pair not in known else []
            stems |= {stem for stem in files.stems if f"{stem}{tail}" in partner.stems}
    several = [pair for known in pairs.values() for pair in known]
    parts = ordered_parts({part: known[0].arguments() for part, known in pairs.items()}) if pairs else None
    if parts is None or len(several) > len(pairs) or (None in pairs and len(pairs) > 1):
        return [
            Layout("MaskFolderDataset", {"train": pair.arguments()}, _named(index.folder, [pair]), [])
            for pair in several
        ]
    lists = _lists(index, stems) if len(pairs) == 1 else {}
    if lists:
        parts = {part: {**parts["train"], "list_file": name} for part, name in lists.items()}
    reason = _named(index.folder, several) + (f", with lists ({', '.join(lists.values())})" if lists else "")
    return [Layout("MaskFolderDataset", parts, reason, alone)]


def count_images(index: FolderIndex) -> Counter[str]:
    """Count the images and masks of each folder."""
    return Counter(PurePosixPath(name).parent.as_posix() for name in _image_names(index))


def _named(folder: Path, pairs: Sequence[_Pair]) -> str:
    """Name the folders of images and masks as paths, since folders are often called `images` and `masks` too."""
    below = [((folder / pair.images).as_posix(), (folder / pair.masks).as_posix()) for pair in pairs]
    return ", ".join(f"images in {images}/ with masks in {masks}/" for images, masks in below)


def _image_names(index: FolderIndex) -> list[str]:
    return [name for name in index.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]


def _sorted_out(index: FolderIndex) -> tuple[list[_Files], list[_Files]]:
    """Tell the folders of images from those of masks, by their names or else by what a few of their files hold."""
    images: list[_Files] = []
    masks: list[_Files] = []
    unnamed_masks: list[_Files] = []
    in_folder: dict[str, list[str]] = defaultdict(list)
    for name in _image_names(index):
        in_folder[PurePosixPath(name).parent.as_posix()].append(name)
    for folder, names in in_folder.items():
        role = _role(folder)
        if role is not None:
            (masks if role == "masks" else images).append(_files(folder, names))
            continue
        of_suffix: dict[str, list[str]] = defaultdict(list)
        for name in names:
            of_suffix[PurePosixPath(name).suffix.lower()].append(name)
        for some in of_suffix.values():
            paths = [index.folder / name for name in some]
            (unnamed_masks if _look_like_masks(paths) else images).append(_files(folder, some))
    if not images and masks:  # drawings of few colours
        images, unnamed_masks = unnamed_masks, []
    masks += unnamed_masks
    classes = [files for files in masks if not _INSTANCE_WORDS.search(files.folder.lower())]
    return images, classes or masks


def _is_copy(files: _Files, masks: Sequence[_Files]) -> bool:
    """Check whether a folder holds drawings or arrays of masks that are there as PNG files, as labelme exports them."""
    return files.suffix in _COPIES and any(other.suffix == ".png" and files.stems <= other.stems for other in masks)


def _role(folder: str) -> str | None:
    """Return what a folder holds by its name and those of the folders around it: images, masks, or None."""
    for name in reversed(folder.lower().split("/")):
        if _MASK_WORDS.search(name):
            return "masks"
        if _IMAGE_WORDS.search(name):
            return "images"
    return None


def _files(folder: str, names: Sequence[str]) -> _Files:
    paths = [PurePosixPath(name) for name in names]
    [(suffix, _)] = Counter(path.suffix.lower() for path in paths).most_common(1)
    return _Files(folder, suffix, frozenset(path.stem for path in paths))


def _look_like_masks(paths: Sequence[Path]) -> bool:
    """Check whether some of the files have few different values or colours."""
    for path in paths[:: -(-len(paths) // _NUM_SAMPLES)]:
        try:
            ids = read_raw_mask(path).ids
        except (OSError, ValueError):
            return False
        if len(np.unique(ids)) > _MAX_VALUES:
            return False
    return True


def _partners(images: _Files, masks: Iterable[_Files]) -> list[tuple[_Files, str]]:
    """Return the masks that fit the images best, with what their names append to the images' names."""
    found: dict[tuple[bool, int], list[tuple[_Files, str]]] = defaultdict(list)
    for files in masks:
        is_same_file = (files.folder, files.suffix) == (images.folder, images.suffix)
        if not is_same_file and (tail := _tail(images.stems, files.stems)) is not None:
            shared = len(set(images.folder.split("/")) & set(files.folder.split("/")))
            found[part_of(images.folder) == part_of(files.folder), shared].append((files, tail))
    return found[max(found)] if found else []


def _tail(images: frozenset[str], masks: frozenset[str]) -> str | None:
    """Return what the names of the masks append to those of the images, an empty text if nothing; None if they differ.

    Args:
        images: File names without suffix.
        masks: File names without suffix.
    """
    first = sorted(images)[:_NUM_SAMPLES]
    tails = ["", *sorted({mask[len(stem) :] for stem in first for mask in masks if mask.startswith(f"{stem}_")})]
    for tail in tails:
        num_found = sum(f"{stem}{tail}" in masks for stem in images)
        if num_found >= _MIN_SHARE * min(len(images), len(masks)):
            return tail
    return None


def _pair(images: _Files, masks: _Files, tail: str) -> _Pair:
    """Combine folders, without the folders below them that both have, unless these name a part."""
    image_suffix = images.suffix if images.folder == masks.folder else None
    own, other = images.folder.split("/"), masks.folder.split("/")
    if own != other:
        while min(len(own), len(other)) > 1 and own[-1] == other[-1] and part_of(own[-1]) is None:
            own.pop()
            other.pop()
    return _Pair("/".join(own), "/".join(other), image_suffix, f"{tail}{masks.suffix}")


def _lists(index: FolderIndex, stems: set[str]) -> dict[str, str]:
    """Find the text files that list the images of each part, such as VOC's; none if there is no list to train on.

    Args:
        index: The files of the folder.
        stems: Names of the images with masks, without suffix.

    Raises:
        DataError: If a list is not in UTF-8.
    """
    found: dict[str, dict[str | None, str]] = defaultdict(dict)
    for name in index.names:
        path = PurePosixPath(name)
        is_list = path.suffix.lower() == ".txt" and without_part(path.stem).strip("0123456789_-") == "*"
        if is_list and _lists_images(index.folder / name, stems):
            found[path.parent.as_posix()][part_of(path.stem)] = name
    folders = sorted(found, key=lambda folder: ("segm" not in folder.lower(), folder))
    usable = (ordered_parts(found[folder]) for folder in folders if len(found[folder]) > 1)
    return next((parts for parts in usable if parts is not None), {})


def _lists_images(path: Path, stems: set[str]) -> bool:
    """Check whether nearly all lines of a text file name an image that has a mask.

    Raises:
        DataError: If they do, and the file is not in UTF-8, as a data set needs it.
    """
    if (text := read_any_text(path)) is None:
        return False
    lines = [line.strip() for line in text.lines if line.strip()]
    num_known = sum(any(name in stems for name in _names(line)) for line in lines)
    is_list = bool(lines) and num_known >= _MIN_LISTED * len(lines)
    if is_list and text.encoding is not None:
        raise DataError(f"{path}: lists images, and is {text.encoding}. Save it as UTF-8.")
    return is_list


def _names(line: str) -> Iterator[str]:
    """Yield the names without suffix that a line may begin with."""
    for text in (line, line.split()[0]):
        name = PurePosixPath(text).name
        yield from (name, PurePosixPath(name).stem)
