from pathlib import Path

import numpy as np
from PIL import Image

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.drawing import colorize, draw_confusion_matrix, overlay, palette_image, panel

TABLE = ClassTable(["background", "can"], [[0, 0, 0], [200, 0, 0]])
MASK = np.array([[0, 1, 255]], dtype=np.uint8)
IMAGE = np.full((1, 3, 3), 100, dtype=np.uint8)


def test_masks_get_the_colours_of_their_classes() -> None:
    assert colorize(MASK, TABLE)[0].tolist() == [[0, 0, 0], [200, 0, 0], [224, 224, 224]]


def test_overlays_leave_background_and_void_as_they_are() -> None:
    assert overlay(IMAGE, MASK, TABLE, opacity=0.5)[0].tolist() == [[100] * 3, [150, 50, 50], [100] * 3]


def test_a_first_class_that_is_no_background_is_coloured() -> None:
    sky = ClassTable(["sky", "road"], [[0, 0, 200], [1, 1, 1]])
    assert overlay(IMAGE, MASK, sky, opacity=1.0)[0, 0].tolist() == [0, 0, 200]


def test_palette_images_hold_train_ids() -> None:
    image = palette_image(MASK, TABLE)
    assert np.asarray(image).tolist() == MASK.tolist()
    assert image.convert("RGB").getpixel((1, 0)) == (200, 0, 0)


def test_panels_show_image_truth_and_prediction_in_a_row_below_the_legend() -> None:
    rows = [
        (np.zeros((20, 40, 3), dtype=np.uint8), np.ones((20, 40), dtype=np.uint8), np.zeros((20, 40), dtype=np.uint8))
    ]
    image = panel(rows, TABLE, width=100)
    assert image.size[0] == 300
    assert image.getpixel((150, image.size[1] - 10)) == (200, 0, 0)  # the truth, in the middle


def test_the_matrix_of_many_classes_is_a_bounded_picture(tmp_path: Path) -> None:
    """253 classes with long names took 6.1 GB and 12,073 x 11,963 pixels."""
    names = [f"class {index} {'x' * 300}" for index in range(253)]
    matrix = np.diag(np.full(253, 100)) + np.eye(253, k=1, dtype=np.int64) * 10
    draw_confusion_matrix(matrix, names, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert max(picture.size) < 4000
