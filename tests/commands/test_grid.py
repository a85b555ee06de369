import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from deeplab_lightning.cli import main
from deeplab_lightning.commands.grid import Grid
from deeplab_lightning.errors import UserError
from tests.commands.test_kfold import folder as folder  # the same tiny data
from tests.processes import run_program

ROOT = Path(__file__).parents[2]
GRIDS = sorted((ROOT / "configs" / "grids").glob("*.yaml"))
SWEEPS = [ROOT / "configs" / "sweeps" / "backbones.yaml"]  # tests/tracking/test_sweep.py runs a trial of folds


def write_grid(path: Path, **changes: object) -> Path:
    content = {"name": "g", "axes": {"net": {"a": "--x 1", "b": "--x 2"}, "seed": {0: "--s 0", 1: "--s 1"}}, **changes}
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    grid = Grid.read(write_grid(tmp_path / "g.yaml", options="-c base.yaml"))
    assert grid.experiments() == {
        "a-0": ["-c", "base.yaml", "--x", "1", "--s", "0"],
        "a-1": ["-c", "base.yaml", "--x", "1", "--s", "1"],
        "b-0": ["-c", "base.yaml", "--x", "2", "--s", "0"],
        "b-1": ["-c", "base.yaml", "--x", "2", "--s", "1"],
    }


def test_bad_grids_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown keys \['axis'\]"):
        Grid.read(write_grid(tmp_path / "g.yaml", axis={}))
    with pytest.raises(UserError, match="axes must map each axis to its labels"):
        Grid.read(write_grid(tmp_path / "g.yaml", axes=["a", "b"]))
    with pytest.raises(UserError, match="each label to a text of options of `deeplab fit`"):
        Grid.read(write_grid(tmp_path / "g.yaml", axes={"net": {"a": ["-c", "x.yaml"]}}))
    with pytest.raises(UserError, match="options must be one text"):
        Grid.read(write_grid(tmp_path / "g.yaml", options=["-c", "x.yaml"]))
    wrong: list[object] = ["0,2", 0, []]
    for folds in wrong:
        with pytest.raises(UserError, match=r"folds must be null for all, or a list such as \[0, 2\]"):
            Grid.read(write_grid(tmp_path / "g.yaml", folds=folds))
    axes = {"net": {"r50": "", "r50-wide": ""}, "size": {"wide-x": "", "x": ""}}
    with pytest.raises(UserError, match="give the folder 'r50-wide-x'"):
        Grid.read(write_grid(tmp_path / "g.yaml", axes=axes)).experiments()
    with pytest.raises(FileNotFoundError, match="no such grid"):
        Grid.read(tmp_path / "none.yaml")


@pytest.mark.long
def test_a_grid_trains_pools_and_compares(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"channels": {"narrow": "--model.net.aspp_channels 4", "wide": "--model.net.aspp_channels 8"}}
    options = f"-c {folder / 'config.yaml'} --trainer.max_epochs 1"
    path = write_grid(tmp_path / "g.yaml", axes=axes, options=options, predictions=True)
    place = ["--output_dir", str(tmp_path)]
    main(["grid", "-c", str(path), "--in_process", *place])
    with (tmp_path / "g" / "compare.csv").open() as file:
        assert [row["experiment"] for row in csv.DictReader(file)] == ["narrow", "wide"]
    assert (tmp_path / "g" / "narrow" / "folds.csv").read_text() == (tmp_path / "g" / "wide" / "folds.csv").read_text()
    page = (tmp_path / "g" / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert re.search(r"wide (is|and narrow|- narrow)", page)
    capsys.readouterr()
    main(["grid", "-c", str(path), "--in_process", *place])  # nothing is left to do
    assert "4 of 4 folds are finished already" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_grid_parses(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    experiments = Grid.read(path).experiments()
    assert len(experiments) >= 2
    for options in experiments.values():
        with pytest.raises(SystemExit) as stop:
            main(["fit", *options, "--print_config"])
        assert stop.value.code == 0
    capsys.readouterr()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_what_a_sweep_agent_passes_parses(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    chosen = {key: parameter["values"][-1] for key, parameter in sweep["parameters"].items()}
    words = [f"--{key}={value}" for key, value in chosen.items()]
    command = [w for part in sweep["command"][1:] for w in (words if part == "${args}" else [part])]
    assert sweep["program"] == "deeplab"
    with pytest.raises(SystemExit) as stop:
        main([*command, "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["fold"] == chosen["data.fold"]
    assert config["model"]["net"]["init_args"]["backbone"] == chosen["model.net.init_args.backbone"]


@pytest.mark.slow
def test_what_a_sweep_agent_passes_trains(folder: Path) -> None:
    words = "--model.net.init_args.backbone=test_resnet --data.fold=1 --trainer.max_epochs=1 --name sweep"
    main(["fit", "-c", str(folder / "config.yaml"), *shlex.split(words)])
    result = json.loads((folder / "runs" / "sweep" / "result.json").read_text())
    assert result["fold"] == 1


@pytest.mark.slow
def test_a_grid_stays_in_its_output_folder(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "g.yaml", axes={"net": {"a": "--seed_everything 1"}})
    done = run_program("grid", "-c", str(grid), "--name", "../x", "--output_dir", str(tmp_path / "out" / "deep"))
    assert done.returncode == 2
    assert "name must be the name of a folder in output_dir, got '../x'" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
