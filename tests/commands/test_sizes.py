"""Run the commands with one and with many classes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import noise_config
from tests.processes import run_program


def train(folder: Path, classes: dict[str, Any], data: dict[str, Any] | None = None) -> Any:
    """Train one step on the noise data with other classes, and return the finished process."""
    config = noise_config(folder, trainer={"max_epochs": 1, "limit_train_batches": 1}, data=data or {})
    config["data"]["dataset"]["init_args"]["classes"] = classes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return run_program("fit", "-c", str(folder / "config.yaml"), "--name", "sized")


@pytest.mark.long
def test_one_class_named_background_is_trained_if_asked(mask_folder: Path) -> None:
    """The table of the folds had no rows: IndexError."""
    classes = {"names": ["background"], "raw_ids": {0: 0, 1: 0, 2: 0}, "ignore_ids": [11]}
    done = train(mask_folder, classes, {"allow_single_class": True})
    assert done.returncode == 0, done.stderr
    refused = train(mask_folder, classes)
    assert refused.returncode == 1
    assert "only class background has pixels, so there is nothing to learn" in refused.stderr


@pytest.mark.long
def test_the_most_classes_are_trained_and_more_refused(mask_folder: Path) -> None:
    """A confusion matrix of 253 classes was drawn with 6.1 GB, and 254 ended in a traceback."""
    done = train(mask_folder, {"names": [f"class {i}, with a long name" for i in range(253)]})
    assert done.returncode == 0, done.stderr
    assert (mask_folder / "runs" / "sized" / "confusion_matrix.png").is_file()
    refused = train(mask_folder, {"names": [f"class {i}" for i in range(254)]})
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: a class table needs 1 to 253 names, got 254")
    assert "Traceback" not in refused.stderr
