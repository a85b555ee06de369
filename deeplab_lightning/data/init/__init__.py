"""Look at a folder of images and labels, and write the configuration to train on them."""

from pathlib import Path
from typing import Any

import yaml

from deeplab_lightning.data.check import Part, single_class_problem
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datasets import CocoDataset, MaskFolderDataset, SegmentationDataset
from deeplab_lightning.data.folder_index import FolderIndex
from deeplab_lightning.data.init.class_files import class_files
from deeplab_lightning.data.init.coco_files import coco_layouts
from deeplab_lightning.data.init.config_text import Found, config_text
from deeplab_lightning.data.init.image_formats import find_format
from deeplab_lightning.data.init.layout import Layout, refusal
from deeplab_lightning.data.init.mask_folders import count_images, mask_layouts
from deeplab_lightning.data.init.mask_values import FoundClasses, find_classes, read_mask_values
from deeplab_lightning.data.init.yaml_text import some
from deeplab_lightning.data.problems import data_error
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.errors import MissingFileError


def describe_folder(folder: Path, config: Path) -> Found:
    """Recognise the data of a folder, and read every file once.

    Args:
        folder: The folder, as it is to stand in the configuration.
        config: The configuration to write.

    Raises:
        FileNotFoundError: If there is no such folder.
        DataError: If what it holds cannot be understood, or cannot be used.
    """
    if not folder.is_dir():
        raise MissingFileError(f"no such folder: {folder.absolute()}")
    index = FolderIndex(folder)
    layout = _find_layout(index)
    classes = None
    if layout.class_path == "CocoDataset":
        datasets = _coco_datasets(layout := _below(layout, folder, "annotations", "images"))
    else:
        layout = _below(layout, folder, "root")
        classes, datasets = _mask_datasets(layout, index)
    image_format = find_format([path for dataset in datasets.values() for path in dataset.paths])
    for dataset in datasets.values():
        dataset.image_format = image_format.image_format
    parts = {title: Part(dataset, scan_dataset(dataset)) for title, dataset in datasets.items()}
    problems = [problem for part in parts.values() for problem in part.statistics.problems]
    problems += [problem for problem in [single_class_problem(parts["train"])] if problem and not problems]
    if problems:
        raise data_error(problems)
    if len(parts["train"].dataset) < 2:
        raise refusal(folder, f"holds 1 image to train on ({layout.reason}), and at least 2 are needed")
    return Found(folder, config, layout, parts, classes, image_format)


def written_config(found: Found) -> str:
    """Write the configuration of a folder's data, and build the data from it to be sure.

    Args:
        found: What `describe_folder` returned.

    Returns:
        The text of the YAML file.
    """
    text = config_text(found)
    datamodule = datamodule_from_config(yaml.safe_load(text)["data"])
    if datamodule.split == "folds":
        assert set(datamodule.folds) == set(found.parts["train"].dataset.names)
    return text


def _find_layout(index: FolderIndex) -> Layout:
    """Return the only data set in a folder.

    Raises:
        DataError: If there is none, or several.
    """
    coco, faults = coco_layouts(index)
    found = [*coco, *mask_layouts(index)]
    if len(found) == 1:
        return found[0]
    if found:
        several = "; ".join(layout.reason for layout in found)
        raise refusal(index.folder, f"holds {len(found)} data sets: {several}. Give a folder with one of them")
    images = [f"{number} in {folder}" for folder, number in sorted(count_images(index).items())]
    saw = f"holds images ({some(images)}), but neither masks of the same names nor COCO JSON" if images else "holds "
    if not images:
        saw += (
            f"{len(index.names)} file{'s' if len(index.names) > 1 else ''}, no image among them"
            if index.names
            else "no file"
        )
    raise refusal(index.folder, "; ".join([saw, *faults[:2]]))


def _below(layout: Layout, folder: Path, *keys: str) -> Layout:
    """Return a layout whose arguments name paths with the folder before them."""
    parts = {
        title: {**{key: (folder / arguments.get(key, "")).as_posix() for key in keys}, **_without(arguments, keys)}
        for title, arguments in layout.parts.items()
    }
    return layout._replace(parts=parts)


def _without(arguments: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in keys and value is not None}


def _coco_datasets(layout: Layout) -> dict[str, SegmentationDataset]:
    """Build the data sets of COCO files, with the classes of all of them."""
    alone = [CocoDataset(**arguments) for arguments in layout.parts.values()]
    names = list(dict.fromkeys(name for dataset in alone for name in dataset.classes.names if name != "background"))
    return {title: CocoDataset(**arguments, classes=names) for title, arguments in layout.parts.items()}


def _mask_datasets(layout: Layout, index: FolderIndex) -> tuple[FoundClasses, dict[str, SegmentationDataset]]:
    """Build the data sets of mask folders, with the class table that fits the masks of all of them."""
    alone = [MaskFolderDataset(**arguments, classes=ClassTable(["any"])) for arguments in layout.parts.values()]
    values = read_mask_values([path for dataset in alone for path in dataset.mask_paths])
    classes = find_classes(values, class_files(index))
    table = ClassTable(**classes.arguments)
    return classes, {title: MaskFolderDataset(**own, classes=table) for title, own in layout.parts.items()}
