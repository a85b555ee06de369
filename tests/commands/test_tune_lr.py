"""`deeplab tune-lr` on tiny data, through the real command."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deeplab_lightning.commands.tune_lr import suggest
from deeplab_lightning.errors import UserError
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program


@pytest.mark.long
def test_a_rate_is_suggested_and_nothing_else_is_left(tmp_path: Path) -> None:
    draw_noise_data(tmp_path)
    config = noise_config(tmp_path, trainer={"max_epochs": 1})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ("--min_lr", "1e-4", "--max_lr", "10", "--steps", "60", "--output", "found")
    done = run_program("tune-lr", "-c", "config.yaml", *words, cwd=tmp_path, check=True)
    rate = float(re.search(r"--model.optimizer.lr (\S+)", done.stdout)[1])  # type: ignore[index]
    assert 1e-4 < rate < 10
    rows = list(csv.DictReader((tmp_path / "found" / "tune_lr.csv").read_text().splitlines()))
    assert len(rows) <= 60
    assert float(rows[0]["lr"]) == pytest.approx(1e-4)
    assert float(rows[1]["lr"]) == pytest.approx(1e-4 * 1e5 ** (1 / 59), rel=1e-4)
    with Image.open(tmp_path / "found" / "tune_lr.png") as image:
        assert image.width > 300
    assert not (tmp_path / "runs").exists()
    refused = run_program("tune-lr", "-c", "config.yaml", "--min_lr", "1", "--max_lr", "0.1", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == "error: --min_lr must be above 0 and below --max_lr, got 1.0 and 0.1.\n"


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 2])
def test_the_first_steps_suggest_nothing(tmp_path: Path, seed: int) -> None:
    """Their mean falls or rises with single batches: about 1e-6 was suggested, the lowest rate."""
    draw_noise_data(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(noise_config(tmp_path, trainer={"max_epochs": 1})))
    seeds = ("--seed_everything", str(seed), "--data.seed", str(seed))
    done = run_program("tune-lr", "-c", "config.yaml", *seeds, "--output", "found", cwd=tmp_path, check=True)
    rate = float(re.search(r"--model.optimizer.lr (\S+)", done.stdout)[1])  # type: ignore[index]
    assert 1e-3 < rate < 0.1


@pytest.mark.long
def test_the_sweep_trains_as_fit_does_with_a_rate(tmp_path: Path) -> None:
    """With the factor of the batch size, and a frozen backbone for as long as the sweep takes."""
    draw_noise_data(tmp_path)
    freeze = [{"class_path": "FreezeBackbone", "init_args": {"thaw_epoch": 1}}, "LearningRateMonitor"]
    losses: dict[str, list[float]] = {}
    printed: dict[str, str] = {}
    for name, low, base, callbacks in (
        ("plain", 1e-4, None, []),
        ("scaled", 4e-4, 8, []),
        ("frozen", 1e-4, None, freeze),
    ):
        config = noise_config(tmp_path, trainer={"max_epochs": 1, "callbacks": callbacks})
        config["model"]["base_batch_size"] = base
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        words = ("--min_lr", str(low), "--max_lr", str(500 * low), "--steps", "25", "--output", name)
        done = run_program("tune-lr", "-c", "config.yaml", *words, cwd=tmp_path)
        printed[name] = done.stdout + done.stderr
        rows = csv.DictReader((tmp_path / name / "tune_lr.csv").read_text().splitlines())
        losses[name] = [float(row["loss"]) for row in rows]
    assert losses["scaled"] == pytest.approx(losses["plain"], rel=1e-3)  # a batch has 2 images, a quarter of 8
    assert losses["frozen"] != pytest.approx(losses["plain"], rel=1e-3)
    assert "Frozen: the weights of the backbone" in printed["frozen"]
    assert "LearningRateMonitor does not act in these steps." in printed["frozen"]


def test_a_fall_at_the_end_of_the_rates_is_no_suggestion() -> None:
    rates = np.geomspace(1e-6, 1, 121)
    for losses, text in (
        (2 - 1e3 * rates[:80], r"falls fastest at .*, the highest rate .*: raise --max_lr"),
        (1 + np.exp(-np.arange(121) / 10), r"falls fastest at 3.2e-06, the lowest rate .*: lower --min_lr"),
    ):
        with pytest.raises(UserError, match=text):
            suggest(rates[: len(losses)].tolist(), losses.tolist())


def test_the_steepest_fall_is_suggested() -> None:
    rates = np.geomspace(1e-6, 1, 121)
    fall = 1 / (1 + np.exp(-4 * (np.log10(rates) + 3)))  # steepest at 1e-3
    losses = 2 - fall + np.maximum(np.log10(rates) + 1.5, 0) ** 2
    found = suggest(rates.tolist(), losses.tolist())
    assert 1e-3 <= found < 5e-3  # the mean comes a few steps later
    losses[100:] = np.nan
    assert suggest(rates.tolist(), losses.tolist()) == found
    with pytest.raises(UserError, match="the loss does not fall between 3.2e-06 and 1"):
        suggest(rates.tolist(), np.linspace(1, 2, 121).tolist())
    with pytest.raises(UserError, match="the loss diverged after 5 steps"):
        suggest(rates.tolist(), [1.0] * 5 + [np.nan] * 116)
