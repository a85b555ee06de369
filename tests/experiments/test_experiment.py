"""What an experiment writes for its folds before any training."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.runs import ExperimentFolder
from tests.conftest import draw_noise_data, noise_config

LOGGER = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A resolved configuration of two folds that logs to W&B."""
    draw_noise_data(tmp_path)
    trainer = {"max_epochs": 1, "logger": LOGGER}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(noise_config(tmp_path, trainer=trainer)))
    return resolve_fit_config(["-c", str(tmp_path / "config.yaml")])


def logged_group(experiment: Experiment) -> str:
    """Return the W&B group that a fold will log to."""
    arguments = experiment.fold_folder(1).read_job()["trainer"]["logger"]["init_args"]
    assert arguments["name"] == f"{arguments['group']}/fold1"
    return str(arguments["group"])


def test_only_experiments_of_the_same_settings_share_a_group(tmp_path: Path, config: dict[str, Any]) -> None:
    """Two experiments called `lite0`, with other learning rates, were one group, whose folds were then pooled."""
    other = {**config, "data": {**config["data"], "batch_size": 3}}
    elsewhere = {**config, "output_dir": "elsewhere", "data": {**config["data"], "num_workers": 1}}
    groups = [
        logged_group(Experiment.prepare(tmp_path / place / "lite0", own, [0, 1]))
        for place, own in (("a", config), ("b", other), ("c", elsewhere))
    ]
    assert all(group.startswith("lite0-") for group in groups)
    assert groups[0] == groups[2] != groups[1]


def test_a_started_experiment_keeps_its_group(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = tmp_path / "lite0"
    first = Experiment.prepare(folder, config, [0, 1])
    job = ExperimentFolder(folder).fold(0).read_job()
    job["trainer"]["logger"]["init_args"]["group"] = "lite0"  # as an earlier version wrote it
    ExperimentFolder(folder).fold(0).write_job(job)
    assert first.group != "lite0"
    assert logged_group(Experiment.prepare(folder, config, [0, 1])) == "lite0"
