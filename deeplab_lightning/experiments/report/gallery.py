"""Draw the images with the lowest mIoU, with their truth and predictions."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.drawing import Pixels, overlay, viewable
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.metrics.iou import mean_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder, prediction_stems

_MAX_IMAGES = 12
_MAX_WIDTH = 480  # pixels of an image on the page
_JPEG_QUALITY = 80
_CHUNK = 256  # images whose dense matrices are in memory at once
_IMAGE, _TRUTH = "image", "truth"  # views beside those of the experiments


@dataclass(frozen=True)
class Gallery:
    """Hold the images of a report page.

    Attributes:
        images: `name`, `views` (name of the view -> data URL) and `miou` (a sentence) of each image, lowest mIoU first.
        legend: `name` and CSS `color` of each class.
        notes: Reason why no images are shown.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    legend: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_gallery(comparison: Comparison) -> Gallery:
    """Draw the images with the lowest mIoU, in the mean over all experiments.

    Args:
        comparison: Comparison whose experiments may have predictions of their held-out images.
    """
    predicted = [entry for entry in comparison.entries if _has_predictions(entry)]
    if not predicted:
        return _no_images("there are no predictions; `deeplab kfold --predictions` writes them")
    try:
        dataset = _dataset(comparison.entries[0].folder)
    except (OSError, ValueError, SystemExit) as error:  # the parser exits if a class no longer exists
        reason = "see above" if isinstance(error, SystemExit) else str(error).splitlines()[0]
        return _no_images(f"the data cannot be read ({reason})")
    matrices = [entry.images for entry in comparison.entries if entry.images is not None]
    if not matrices:
        return _no_images("an experiment has no image_matrices.npz")
    miou = np.array([_image_miou(own) for own in matrices])  # (M, N)
    order = np.argsort(np.nan_to_num(miou.mean(axis=0), nan=np.inf), kind="stable")
    images: list[dict[str, Any]] = []
    for row, views in _drawn(dataset, predicted, [(i, matrices[0].names[i]) for i in order.tolist()]):
        texts = [f"{entry.label} {miou[i, row]:.3f}" for i, entry in enumerate(comparison.entries)]
        images.append(
            {
                "name": matrices[0].names[row],
                "views": {label: _data_url(pixels) for label, pixels in views.items()},
                "miou": "mIoU of this image: " + ", ".join(texts),
            }
        )
        if len(images) == _MAX_IMAGES:
            break
    if not images:
        return _no_images("the predictions are of other images")
    colors = [f"rgb{tuple(color)}" for color in dataset.classes.colors or ()]
    legend = [{"name": name, "color": color} for name, color in zip(dataset.classes.names, colors, strict=True)]
    return Gallery(images, legend)


def _no_images(reason: str) -> Gallery:
    return Gallery(notes=[f"no images are shown: {reason}."])


def _drawn(
    dataset: SegmentationDataset, predicted: list[Entry], images: list[tuple[int, str]]
) -> Iterator[tuple[int, Mapping[str, Pixels]]]:
    """Yield row and views of each image of which all predictions can be read.

    Args:
        dataset: Data set of the images.
        predicted: Experiments with predictions.
        images: Row in the matrices and key of each image.
    """
    index_of = {name: index for index, name in enumerate(dataset.names)}
    predictions = {view: _predictions(entry, dataset) for view, entry in _views(predicted).items()}
    for row, name in images:
        if name not in index_of:
            continue
        index = index_of[name]
        paths = {view: of_image[name] for view, of_image in predictions.items() if name in of_image}
        if len(paths) < len(predictions) or not all(path.is_file() for path in paths.values()):
            continue
        try:
            image = viewable(dataset.read_image(index).permute(1, 2, 0).numpy())
            views = {_IMAGE: image, _TRUTH: overlay(image, dataset.read_mask(index).numpy(), dataset.classes)}
            for view, path in paths.items():
                with Image.open(path) as prediction:
                    views[view] = overlay(image, np.asarray(prediction), dataset.classes)
        except (OSError, ValueError):  # a damaged file hides its own image only
            continue
        yield row, views


def _image_miou(images: PerImageConfusion) -> npt.NDArray[np.float64]:
    """Compute the (N,) mIoU of each image in chunks, since dense matrices of many classes are large."""
    k, starts = images.num_classes, range(0, len(images.names), _CHUNK)
    dense = (np.asarray(images.counts[start : start + _CHUNK].todense()) for start in starts)
    return np.concatenate([mean_iou(part.reshape(-1, k, k)) for part in dense])


def _has_predictions(entry: Entry) -> bool:
    return any(run.val_predictions.masks.is_dir() for run in ExperimentFolder(entry.folder).runs())


def _views(entries: list[Entry]) -> dict[str, Entry]:
    """Name the view of each experiment: its label, extended if another view has that name."""
    taken = {_IMAGE, _TRUTH}
    views = {}
    for entry in entries:
        view = entry.label
        while view in taken:
            view += " (prediction)"
        taken.add(view)
        views[view] = entry
    return views


def _predictions(entry: Entry, dataset: SegmentationDataset) -> dict[str, Path]:
    """Map image keys to the predictions that `deeplab predict` writes for the images in `val_images.txt`."""
    path_of = dict(zip(dataset.names, dataset.paths, strict=True))
    found: dict[str, Path] = {}
    for run in ExperimentFolder(entry.folder).runs():
        if (masks := run.val_predictions.read_masks()) is not None:
            found |= {name: mask for name, mask in masks.items() if name in path_of}
            continue
        fold = (run.read_result() or {}).get("fold") or 0  # predictions of an earlier version, named by their paths
        held_out = [name for name, own in entry.cv.fold_of.items() if own == fold and name in path_of]
        keys = {name: str(path_of[name].absolute()).lstrip("/") for name in held_out}
        stems = prediction_stems(list(keys.values()))
        found |= {name: run.val_predictions.mask(stems[key]) for name, key in keys.items()}
    return found


def _dataset(folder: Path) -> SegmentationDataset:
    dataset = datamodule_from_config(ExperimentFolder(folder).read_config()["data"], on_error="skip").dataset
    assert dataset is not None
    return dataset


def _data_url(pixels: Pixels) -> str:
    image = Image.fromarray(pixels)
    if image.width > _MAX_WIDTH:
        image = image.resize((_MAX_WIDTH, round(image.height * _MAX_WIDTH / image.width)))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
