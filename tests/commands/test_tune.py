"""What `deeplab tune` refuses, before any training and in one line."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.search import Search
from deeplab_lightning.experiments.search_space import SearchSpace, nested_settings, setting_options
from tests.processes import ROOT, run_program


@pytest.mark.long
def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("parameters: {model.optimizer.init_args.lr: {values: [0.1]}}\n")
    code = "import sys; sys.modules['ray.tune'] = None; from deeplab_lightning.__main__ import run; run()"
    words = [sys.executable, "-c", code, "tune", "-c", str(tmp_path / "search.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: deeplab tune needs the package ray[tune]: pip install 'deeplab_lightning[tune]'\n"


def test_another_launcher_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run_program("tune", "-c", str(tmp_path / "search.yaml"), "--launcher", "slurm")
    assert done.returncode == 1
    assert done.stderr.startswith("error: deeplab tune trains its trials by Ray: leave out --launcher")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"data.fold": {"values": [0, 1]}}, "data.fold cannot be searched: all trials share it"),
        ({"seed_everything": {"values": [0, 1]}}, "seed_everything cannot be searched"),
        ({"a": {"values": []}}, "parameters.a must have values: .* or min and max"),
        ({"a": {"min": 0, "max": 1, "distribution": "normal"}}, "a.distribution must be one of uniform, log_uniform"),
        ({"a": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}, "a must have numbers min < max above 0"),
        ({"a": {"min": "1e-4", "max": 1}}, "write 1e-4 as 1.0e-4"),
        ({}, "parameters must map keys"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, parameters: Any, message: str) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"parameters": parameters}))
    with pytest.raises(ValueError, match=message):
        SearchSpace.read(tmp_path / "search.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "searches").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_search_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    space = SearchSpace.read(path)
    for key, parameter in space.parameters.items():
        for value in parameter.extremes():
            resolve_fit_config([*shlex.split(space.options), *setting_options({key: value})])


def test_a_search_goes_on_with_data_of_one_place_alone(tmp_path: Path) -> None:
    """Trials on other data cannot be told from each other: K-fold experiments compare a digest, a search does not."""
    space = SearchSpace("a", str(tmp_path), "", num_trials=1, min_epochs=1, parameters={})
    config: dict[str, Any] = {
        "trainer": {"max_epochs": 2},
        "data": {"dataset": {"class_path": "D", "init_args": {"root": "one"}}},
    }
    Search.prepare(tmp_path / "a", space, config, "random")
    Search.prepare(tmp_path / "a", space, config, "random")
    config["data"]["dataset"]["init_args"] = {"root": "two"}
    with pytest.raises(DataError, match="'one' then, 'two' now"):
        Search.prepare(tmp_path / "a", space, config, "random")


def test_a_search_goes_on_on_its_fold_alone(tmp_path: Path) -> None:
    """Trials of two folds stood in one table, and the advice named a fold that had taken part."""
    space = SearchSpace("a", str(tmp_path), "", num_trials=1, min_epochs=1, parameters={})
    config: dict[str, Any] = {"trainer": {"max_epochs": 2}, "data": {"fold": 0}}
    Search.prepare(tmp_path / "a", space, config, "random")
    config["data"]["fold"] = 1
    with pytest.raises(DataError, match="started with data.fold 0, got 1"):
        Search.prepare(tmp_path / "a", space, config, "random")


def test_settings_are_found_where_init_args_are_left_out() -> None:
    config = {"model": {"net": {"class_path": "A", "init_args": {"b": 1, "c": 2}}, "loss": {"class_path": "L"}}, "d": 3}
    found = nested_settings(config, {"model.net.b": 0, "model.net.init_args.c": 0, "model.loss": 0, "d": 0})
    assert found == {"model": {"net": {"init_args": {"b": 1, "c": 2}}, "loss": {"class_path": "L"}}, "d": 3}
