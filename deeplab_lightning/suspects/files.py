"""Write suspected regions as CSV, and as COCO JSON for tools that correct annotations."""

import json
from typing import Any

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.files import write_text
from deeplab_lightning.runs import SuspectsFolder
from deeplab_lightning.suspects.ranking import Ranking
from deeplab_lightning.tables import csv_text

_COLUMNS = ["rank", "image", "label", "predicted", "score", "bbox", "area"]


def write_tables(ranking: Ranking, classes: ClassTable, folder: SuspectsFolder) -> None:
    """Write the regions and the images, each by its score. A box is `left top width height` in pixels.

    Args:
        ranking: The suspected regions.
        classes: Class table of the labels.
        folder: Folder to write to.
    """
    rows = [
        [
            rank,
            own.image,
            classes.names[own.region.label],
            classes.names[own.region.predicted],
            f"{own.score:.6f}",
            " ".join(map(str, own.region.box)),
            own.region.area,
        ]
        for rank, own in enumerate(ranking.suspects, start=1)
    ]
    write_text(folder.table, csv_text([_COLUMNS, *rows]))
    images = [[rank, own.image, f"{own.score:.6f}", own.regions] for rank, own in enumerate(ranking.images, start=1)]
    write_text(folder.images_table, csv_text([["rank", "image", "score", "regions"], *images]))


def write_coco(ranking: Ranking, classes: ClassTable, folder: SuspectsFolder) -> None:
    """Write what the networks propose: an annotation of the predicted class for each region, with label and score.

    Category ids are train ids plus one, as in the files of `deeplab predict --coco`; the background is among them, for
    regions that should have no label.

    Args:
        ranking: The suspected regions.
        classes: Class table of the labels.
        folder: Folder to write to.
    """
    sizes = {own.image: own.region.rle["size"] for own in ranking.suspects}
    numbers = {name: number for number, name in enumerate(sorted(sizes), start=1)}
    images = [
        {"id": numbers[name], "file_name": name, "height": sizes[name][0], "width": sizes[name][1]} for name in numbers
    ]
    annotations: list[dict[str, Any]] = [
        {
            "id": rank,
            "image_id": numbers[own.image],
            "category_id": own.region.predicted + 1,
            "segmentation": own.region.rle,
            "area": own.region.area,
            "bbox": list(own.region.box),
            "iscrowd": 0,
            "score": round(own.score, 6),
            "attributes": {"label": classes.names[own.region.label], "rank": rank},
        }
        for rank, own in enumerate(ranking.suspects, start=1)
    ]
    categories = [{"id": train_id, "name": name} for train_id, name in enumerate(classes.names, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_text(folder.coco, json.dumps(document) + "\n")
