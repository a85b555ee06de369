import numpy as np

from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.drawing import colorize, overlay, palette_image, panel

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
