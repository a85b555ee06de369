"""Train one small experiment that several files of tests look at."""

from pathlib import Path

import pytest

from tests.commands.shapes import draw_shapes, train_on_shapes
from tests.planted import Planted, plant_errors


@pytest.fixture(scope="session")
def planted_experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Planted]]:
    """An experiment of two folds on 32 images of coloured shapes, six of which have an error; and the errors."""
    root = tmp_path_factory.mktemp("planted")
    clean = draw_shapes(root / "data", num_images=32)
    errors = plant_errors(clean, clean.with_name("planted.json"), per_kind=2, seed=0)
    return train_on_shapes(root, clean.with_name("planted.json")), errors
