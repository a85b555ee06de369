"""Draw images with their truth and predictions: the worst, those on which experiments differ, the worst of a class."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.drawing import Pixels, overlay, viewable
from deeplab_lightning.errors import unwrapped
from deeplab_lightning.experiments.entries import Comparison, Entry
from deeplab_lightning.metrics.iou import mean_iou, nan_mean, truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder, prediction_stems
from deeplab_lightning.tables import or_null

Floats = npt.NDArray[np.float64]

_MAX_WORST, _MAX_DISPUTED, _MAX_CLASSES = 12, 6, 12  # images of each order; of the classes, those of the lowest IoU
_MAX_WIDTH = 480  # pixels of an image on the page
_JPEG_QUALITY = 80
_CHUNK = 256  # images whose dense matrices are in memory at once
_IMAGE, _TRUTH = "image", "truth"  # views beside those of the experiments


@dataclass(frozen=True)
class Gallery:
    """Hold the images of a report page.

    Attributes:
        images: `name`, `views` (name of the view -> data URL), `miou` (a sentence), `mean`, `spread` over experiments
            and `classes` (name -> IoU) of each image, lowest mIoU first.
        legend: `name` and CSS `color` of each class.
        notes: Reason why no images are shown.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    legend: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_gallery(comparison: Comparison) -> Gallery:
    """Draw the images that tell most, see `_orders`.

    Args:
        comparison: Comparison whose experiments may have predictions of their held-out images.
    """
    predicted = [entry for entry in comparison.entries if _has_predictions(entry)]
    if not predicted:
        return _no_images("there are no predictions; `deeplab kfold --predictions` writes them")
    try:
        dataset = _dataset(comparison.entries[0].folder)
    except (OSError, ValueError, SystemExit) as error:  # the parser exits if a class no longer exists
        reason = "see above" if isinstance(error, SystemExit) else str(unwrapped(error)).splitlines()[0]
        return _no_images(f"the data cannot be read ({reason})")
    matrices = [entry.images for entry in comparison.entries if entry.images is not None]
    if not matrices:
        return _no_images("an experiment has no image_matrices.npz")
    names = sorted(set.intersection(*(set(own.names) for own in matrices)))  # what was stopped early has fewer
    if not names:
        return _no_images("the experiments share no image")
    found = [_image_iou(own.keep(names)) for own in matrices]
    iou, miou = np.array([iou for iou, _ in found]), np.array([own for _, own in found])  # (M, N, K), (M, N)
    draw = _Drawing(dataset, predicted, names)
    images: dict[int, dict[str, Any]] = {}
    for order, count in _orders(iou, miou):
        shown = 0
        for row in order.tolist():
            if shown == count:
                break
            views = None if row in images else draw.views(row)
            if row not in images and views is None:
                continue
            shown += 1
            if views is not None:
                images[row] = _described(comparison, row, names[row], views, miou[:, row], iou[:, row])
    if not images:
        return _no_images("the predictions are of other images")
    colors = [f"rgb{tuple(color)}" for color in dataset.classes.colors or ()]
    legend = [{"name": name, "color": color} for name, color in zip(dataset.classes.names, colors, strict=True)]
    return Gallery(list(images.values()), legend)


def _orders(iou: Floats, miou: Floats) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Yield the images in each order in which they are shown, and how many.

    Args:
        iou: (M, N, K) IoU of each experiment, image and class.
        miou: (M, N) mIoU of each experiment and image.
    """
    yield np.argsort(np.nan_to_num(miou.mean(axis=0), nan=np.inf), kind="stable"), _MAX_WORST
    if len(miou) > 1:
        yield np.argsort(-np.nan_to_num(_spread(miou), nan=-np.inf), kind="stable"), _MAX_DISPUTED
    of_class = nan_mean(np.moveaxis(iou, 0, -1))  # (N, K)
    means = nan_mean(of_class.T)
    for index in np.argsort(np.nan_to_num(means, nan=np.inf), kind="stable")[:_MAX_CLASSES].tolist():
        rows = np.flatnonzero(~np.isnan(of_class[:, index]))
        yield rows[np.argsort(of_class[rows, index], kind="stable")], 1


def _spread(miou: Floats) -> Floats:
    """Return by how much the mIoU of each image differs between the experiments: (N,) of (M, N)."""
    return np.asarray(miou.max(axis=0) - miou.min(axis=0))


def _described(
    comparison: Comparison, row: int, name: str, views: Mapping[str, Pixels], miou: Floats, iou: Floats
) -> dict[str, Any]:
    """Return what the page shows of one image.

    Args:
        comparison: The comparison.
        row: Place of the image among the compared ones.
        name: Its key.
        views: Its views by name.
        miou: (M,) mIoU of the image.
        iou: (M, K) IoU of its classes.
    """
    texts = [f"{entry.label} {miou[i]:.3f}" for i, entry in enumerate(comparison.entries)]
    means = nan_mean(iou.T)
    known = {comparison.class_names[k]: round(float(means[k]), 3) for k in np.flatnonzero(~np.isnan(means)).tolist()}
    return {
        "name": name,
        "views": {label: _data_url(pixels) for label, pixels in views.items()},
        "miou": "mIoU of this image: " + ", ".join(texts),
        "mean": or_null(float(miou.mean())),
        "spread": or_null(float(_spread(miou[:, None])[0])),
        "classes": known,
    }


def _no_images(reason: str) -> Gallery:
    return Gallery(notes=[f"no images are shown: {reason}."])


class _Drawing:
    """Draw the views of images: the image, its truth, and the predictions.

    Args:
        dataset: Data set of the images.
        predicted: Experiments with predictions.
        names: Keys of the compared images.
    """

    def __init__(self, dataset: SegmentationDataset, predicted: list[Entry], names: Sequence[str]) -> None:
        self._dataset, self._names = dataset, names
        self._index_of = {name: index for index, name in enumerate(dataset.names)}
        self._predictions = {view: _predictions(entry, dataset) for view, entry in _views(predicted).items()}

    def views(self, row: int) -> dict[str, Pixels] | None:
        """Return the views of an image by their names; None if the image or a prediction cannot be read."""
        dataset, name = self._dataset, self._names[row]
        paths = {view: of_image[name] for view, of_image in self._predictions.items() if name in of_image}
        is_whole = len(paths) == len(self._predictions) and all(path.is_file() for path in paths.values())
        if name not in self._index_of or not is_whole:
            return None
        index = self._index_of[name]
        try:
            image = viewable(dataset.read_image(index).permute(1, 2, 0).numpy())
            views = {_IMAGE: image, _TRUTH: overlay(image, dataset.read_mask(index).numpy(), dataset.classes)}
            for view, path in paths.items():
                with Image.open(path) as prediction:
                    views[view] = overlay(image, np.asarray(prediction), dataset.classes)
        except (OSError, ValueError):  # a damaged file hides its own image only
            return None
        return views


def _image_iou(images: PerImageConfusion) -> tuple[Floats, Floats]:
    """Compute (N, K) IoU of the classes of each image and its (N,) mIoU.

    In chunks, since dense matrices of many classes are large.
    """
    k, starts = images.num_classes, range(0, len(images.names), _CHUNK)
    dense = (np.asarray(images.counts[start : start + _CHUNK].todense()).reshape(-1, k, k) for start in starts)
    found = [(truth_iou(part), mean_iou(part)) for part in dense]
    return np.concatenate([iou for iou, _ in found]), np.concatenate([miou for _, miou in found])


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
