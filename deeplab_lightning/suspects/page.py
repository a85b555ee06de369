"""Write the page that shows suspected regions with their labels and what the networks propose."""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from scipy import ndimage

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.drawing import Pixels, overlay, viewable
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import SuspectsFolder
from deeplab_lightning.suspects.ranking import Ranking, Suspect

_CONTEXT = 0.6  # around a region, as a fraction of its longer side
_MIN_CROP = 64  # pixels; a smaller region is shown with more around it
_MAX_SIDE = 320  # pixels of a crop on the page
_MIN_SIDE = 200  # to which smaller crops are enlarged
_QUALITY = 85  # of JPEG
_MAX_IMAGES = 30  # rows of the table of images


def write_page(ranking: Ranking, dataset: SegmentationDataset, folder: SuspectsFolder, *, title: str) -> None:
    """Write one HTML file with three crops of each region: the image, its labels, and the proposal.

    Args:
        ranking: The suspected regions.
        dataset: Data set of the images.
        folder: Folder to write to.
        title: Its title.
    """
    environment = Environment(
        loader=PackageLoader("deeplab_lightning.suspects", "."), autoescape=True, undefined=StrictUndefined
    )
    draw = _Drawing(dataset, folder.page)
    shown = [draw.card(suspect) for suspect in ranking.suspects]
    classes = dataset.classes
    present = sorted({train_id for s in ranking.suspects for train_id in (s.region.label, s.region.predicted)})
    page = environment.get_template("page.html").render(
        title=title,
        images_file=folder.images_table.name,
        summary=ranking.describe(),
        suspects=shown,
        legend=[{"name": classes.names[train_id], "color": css_color(classes, train_id)} for train_id in present],
        images=[
            {"image": own.image, "link": draw.link(own.image), "score": f"{own.score:.3f}", "regions": own.regions}
            for own in ranking.images[:_MAX_IMAGES]
        ],
    )
    write_text(folder.page, page)


def css_color(classes: ClassTable, train_id: int) -> str:
    """Return the colour of a class for a style sheet."""
    assert classes.colors is not None
    return f"rgb{tuple(classes.colors[train_id])}"


class _Drawing:
    """Draw the crops of regions. The last image is kept, since its regions may follow each other."""

    def __init__(self, dataset: SegmentationDataset, page: Path) -> None:
        self._dataset, self._page = dataset, page
        self._index_of = {name: index for index, name in enumerate(dataset.names)}

    def link(self, image: str) -> str:
        """Return the address of an image's file, relative to the page where that is possible."""
        file = self._dataset.paths[self._index_of[image]].absolute()
        try:
            return quote(Path(os.path.relpath(file, self._page.absolute().parent)).as_posix())
        except ValueError:  # on another drive of Windows
            return file.as_uri()

    def card(self, suspect: Suspect) -> dict[str, Any]:
        """Return what the page shows of a region."""
        classes, region = self._dataset.classes, suspect.region
        return {
            "image": suspect.image,
            "link": self.link(suspect.image),
            "label": classes.names[region.label],
            "predicted": classes.names[region.predicted],
            "label_color": css_color(classes, region.label),
            "predicted_color": css_color(classes, region.predicted),
            "score": f"{suspect.score:.3f}",
            "area": region.area,
            "views": self._views(suspect),
        }

    def _views(self, suspect: Suspect) -> list[dict[str, str]]:
        index, classes = self._index_of[suspect.image], self._dataset.classes
        image = viewable(self._dataset.read_image(index).permute(1, 2, 0).numpy())
        window = _window(suspect.region.box, image.shape[:2])
        crop, mask = np.ascontiguousarray(image[window]), self._dataset.read_mask(index).numpy()[window]
        inside = suspect.region.decode()[window]
        proposed = np.where(inside, suspect.region.predicted, mask).astype(np.uint8)
        scale = _scale(crop.shape[:2])
        outline = _outline(_resized(inside.astype(np.uint8), scale, Image.Resampling.NEAREST) > 0)
        drawn = {"image": crop, "label": overlay(crop, mask, classes), "proposal": overlay(crop, proposed, classes)}
        return [{"name": name, "url": _data_url(pixels, scale, outline)} for name, pixels in drawn.items()]


def _window(box: Sequence[int], size: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of a square around a box (left, top, width, height), within an image of (H, W)."""
    left, top, width, height = box
    side = max(_MIN_CROP, round((1 + 2 * _CONTEXT) * max(width, height)))
    return _span(top + height / 2, side, size[0]), _span(left + width / 2, side, size[1])


def _span(center: float, side: int, length: int) -> slice:
    side = min(side, length)
    start = min(max(0, round(center - side / 2)), length - side)
    return slice(start, start + side)


def _scale(size: tuple[int, ...]) -> float:
    """Return the factor by which a crop of (H, W) is resized for the page."""
    longer = max(size)
    return min(_MAX_SIDE, max(_MIN_SIDE, longer)) / longer


def _resized(pixels: Pixels, scale: float, how: Image.Resampling) -> Pixels:
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _outline(inside: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return a line of two pixels around a region (H, W), and one of one pixel around that."""
    line = ndimage.binary_dilation(inside, iterations=2) & ~inside
    return line, ndimage.binary_dilation(inside, iterations=3) & ~line & ~inside


def _data_url(pixels: Pixels, scale: float, outline: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]) -> str:
    drawn = _resized(pixels, scale, Image.Resampling.BILINEAR).copy()
    drawn[outline[0]], drawn[outline[1]] = 255, 0  # visible on light and on dark pixels
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
