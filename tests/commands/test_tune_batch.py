"""`deeplab tune-batch` on tiny data, through the real command."""

import csv
from pathlib import Path

import pytest
import yaml

from deeplab_lightning.commands.tune_batch import Trial, fastest
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

_NET = """
from deeplab_lightning import DeepLabV3

class Hungry(DeepLabV3):
    def forward(self, image):
        if len(image) > {most}:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 TiB")
        return super().forward(image)
"""


def config_of(folder: Path, *, most: int | None = None) -> list[str]:
    """Write a configuration, with a network that fits up to `most` images, and return its words."""
    draw_noise_data(folder)
    config = noise_config(folder, trainer={"max_epochs": 1})
    config["data"]["fold"] = None
    if most is not None:
        (folder / "hungry.py").write_text(_NET.format(most=most))
        config["model"]["net"]["class_path"] = "hungry.Hungry"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["-c", "config.yaml", "--steps", "4", "--output", "found"]


def sizes(folder: Path) -> list[int]:
    rows = csv.DictReader((folder / "found" / "tune_batch.csv").read_text().splitlines())
    trials = [Trial(int(r["batch_size"]), float(r["images_per_s"]), float(r["peak_mb"])) for r in rows]
    assert all(trial.images_per_s > 0 and trial.peak_mb > 0 for trial in trials)
    return [trial.batch_size for trial in trials]


@pytest.mark.long
def test_the_largest_batch_is_found_between_what_fits_and_what_does_not(tmp_path: Path) -> None:
    done = run_program("tune-batch", *config_of(tmp_path, most=7), cwd=tmp_path, check=True)
    assert sizes(tmp_path) == [1, 2, 4, 6]
    assert "Larger batches do not fit: 8 images need more memory than there is." in done.stdout
    assert "Largest: --data.batch_size 6." in done.stdout
    assert not (tmp_path / "runs").exists()
    none = run_program("tune-batch", *config_of(tmp_path, most=0), cwd=tmp_path)
    assert none.returncode == 1
    assert none.stderr.splitlines()[-1].startswith("error: one image does not fit: 1 images need more memory")


@pytest.mark.long
def test_batches_end_with_the_training_images(tmp_path: Path) -> None:
    words = config_of(tmp_path)
    done = run_program("tune-batch", *words, cwd=tmp_path, check=True)
    assert sizes(tmp_path) == [1, 2, 4, 8]  # of ten images
    assert "there are only 10 training images for a batch of 16" in done.stdout
    run_program("tune-batch", *words, "--max_batch_size", "2", cwd=tmp_path, check=True)
    assert sizes(tmp_path) == [1, 2]
    for option, message in (("--steps", "--steps must be above 2"), ("--max_batch_size", "must be at least 1, got 0")):
        refused = run_program("tune-batch", *words, option, "0", cwd=tmp_path)
        assert refused.returncode == 1
        assert message in refused.stderr


def test_the_smallest_of_the_fastest_is_named() -> None:
    rates = {1: 10.0, 2: 19.0, 4: 30.0, 8: 29.5, 16: 30.5}
    assert fastest([Trial(size, rate, 0) for size, rate in rates.items()]).batch_size == 4
