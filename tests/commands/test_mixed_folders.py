"""Folders that weeks of work leave: copied, renamed and edited ones, changed images. Figures stay those of one recipe.

Each case ended in figures without a word, or in a traceback.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from PIL import Image

from deeplab_lightning.checkpoints import read_checkpoint
from deeplab_lightning.errors import UserError
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tables import csv_text, read_csv
from tests.conftest import draw_noise_data, noise_config, shared_copy, train_noise_experiment
from tests.processes import run_program


def draw_and_train(root: Path) -> None:
    draw_noise_data(root)
    train_noise_experiment(root, epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_copy(tmp_path_factory, "mixed", draw_and_train)


@pytest.fixture
def experiment(trained: Path, tmp_path: Path) -> ExperimentFolder:
    """A finished experiment of two folds, to be spoilt."""
    return ExperimentFolder(shutil.copytree(trained, tmp_path / "spoilt") / "runs" / "cv")


def kfold(files: ExperimentFolder, *words: str) -> "subprocess.CompletedProcess[str]":
    return run_program("kfold", "--name", files.name, "--output_dir", str(files.path.parent), *words)


def aggregated(files: ExperimentFolder) -> str:
    return run_program("kfold", "--aggregate", str(files), check=True).stdout


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the one line of an error."""
    assert done.returncode == 1, done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


@pytest.mark.long
def test_a_copy_of_a_fold_is_no_second_fold(experiment: ExperimentFolder) -> None:
    shutil.rmtree(experiment.fold(1).path)
    shutil.copytree(experiment.fold(0).path, experiment.fold(1).path)
    text = "fold_1 holds the result of fold 0, as a copied or renamed folder does."
    assert text in refused(kfold(experiment, "--resume"))
    assert f"note: fold_1 is left out: {experiment.fold(1)} holds" in aggregated(experiment)
    assert text in refused(run_program("best", str(experiment)))
    result = experiment.fold(1).read_result()
    assert result is not None
    experiment.fold(1).write_result({**result, "fold": 1})
    assert "note: fold_1 is left out: it holds images of fold_0, as a copy does." in aggregated(experiment)
    assert experiment.read_result() is not None
    assert experiment.read_result()["num_images"] == 5  # type: ignore[index]


@pytest.mark.long
@pytest.mark.parametrize("command", ["best", "suspects", "calibrate"])
def test_folds_of_another_split_are_refused(experiment: ExperimentFolder, command: str) -> None:
    rows = [[row["image"], row["group"], 1 - int(row["fold"])] for row in read_csv(experiment.folds)]
    experiment.folds.write_text(csv_text([["image", "group", "fold"], *rows]))
    expected = f"fold_0 was trained on other folds than {experiment.folds} holds."
    assert expected in refused(run_program(command, str(experiment)))
    if command == "best":
        shutil.rmtree(experiment.fold(1).path)
        assert expected in refused(kfold(experiment, "--resume"))
        assert expected in refused(run_program("kfold", "--aggregate", str(experiment)))


@pytest.mark.long
def test_an_edited_configuration_is_not_that_of_finished_folds(experiment: ExperimentFolder) -> None:
    config = experiment.read_config()
    config["model"]["optimizer"]["init_args"]["lr"] = 0.1
    experiment.write_config(config)
    difference = "model.optimizer.init_args.lr (0.1 and 0.005)"
    assert f"note: fold_0 has other settings than the experiment: {difference}." in aggregated(experiment)
    shutil.rmtree(experiment.fold(1).path)
    line = refused(kfold(experiment, "--resume"))
    assert "fold_0 was trained with other settings than this experiment has: " in line
    assert "model.optimizer.init_args.lr: 0.005 there, 0.1 now" in line
    assert not experiment.fold(1).job.exists()


@pytest.mark.long
@pytest.mark.parametrize("command", ["fit", "kfold"])
def test_a_renamed_experiment_is_trained_again_on_its_own_folds(experiment: ExperimentFolder, command: str) -> None:
    """Its configuration names `folds.csv` at the old place, where another experiment may lie."""
    renamed = ExperimentFolder(experiment.path.rename(experiment.path.with_name("old")))
    config = renamed.read_config()
    config["data"]["fold_file"] = str(experiment.folds)
    config["output_dir"] = str(renamed.path.parent)
    renamed.write_config(config)
    shutil.copytree(renamed.path, experiment.path)
    rows = [[row["image"], row["group"], 1 - int(row["fold"])] for row in read_csv(experiment.folds)]
    experiment.folds.write_text(csv_text([["image", "group", "fold"], *rows]))
    done = run_program(command, "-c", str(renamed.config), "--name", "again", "--trainer.max_epochs", "1", check=True)
    assert f"Folds: {renamed.folds}, beside the configuration" in done.stdout
    assert ExperimentFolder(renamed.path.with_name("again")).read_folds() == renamed.read_folds()
    shutil.rmtree(experiment.path)
    words = ("-c", str(renamed.config), "-c", "{trainer: {max_epochs: 1}}")
    run_program("fit", *words, "--name", "third", check=True)
    assert RunFolder(renamed.path.with_name("third")).read_folds() == renamed.read_folds()


@pytest.mark.long
def test_moved_data_are_found_by_all_commands_after_a_resume(experiment: ExperimentFolder) -> None:
    """Commands on the held-out images read the first fold's configuration, which still named the old place."""
    root, new = experiment.path.parents[1], experiment.path.parents[1] / "elsewhere"
    for part in ("images", "masks"):
        shutil.copytree(root / part, new / part)
    for file in (experiment.config, *(run.config for run in experiment.runs())):
        config = yaml.safe_load(file.read_text())
        config["data"]["dataset"]["init_args"]["root"] = str(root / "gone")
        file.write_text(yaml.safe_dump(config))
    kfold(experiment, "--resume", "--data.dataset.root", str(new)).check_returncode()
    done = run_program("suspects", str(experiment), check=True)
    assert "have changed" not in done.stderr
    for path in (new / "images").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    done = run_program("suspects", str(experiment), check=True)
    assert f"images or labels have changed since {experiment} was trained" in " ".join(done.stderr.split())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Data, and the configuration of a training of one epoch."""
    draw_noise_data(tmp_path)
    content = noise_config(tmp_path, trainer={"max_epochs": 1, "num_sanity_val_steps": 0})
    content["model"]["optimizer"] = {"class_path": "SGD", "init_args": {"lr": 0.01}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "c.yaml"


@pytest.mark.long
def test_changed_images_are_said_in_comparison_and_validation(config: Path, tmp_path: Path) -> None:
    run_program("fit", "-c", str(config), "--name", "before", check=True)
    moved = tmp_path / "link"
    moved.symlink_to(tmp_path)
    words = ("--data.dataset.root", str(moved), "--seed_everything", "3")
    run_program("fit", "-c", str(config), "--name", "same", *words, check=True)
    for path in (tmp_path / "images").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    run_program("fit", "-c", str(config), "--name", "after", check=True)
    runs, table = tmp_path / "runs", tmp_path / "out.json"
    folders = [str(runs / name) for name in ("before", "after", "same")]
    done = run_program("compare", *folders, "--json", str(table), check=True)
    said = " ".join(done.stdout.split())
    assert "by their digests, the data of after hold other images or labels than the baseline's." in said
    content: dict[str, Any] = json.loads(table.read_text())
    assert content["differing_settings"]["after"].keys() == {"data.digest"}
    assert [row["seeds"] for row in content["experiments"]] == [2, 1]  # equal data elsewhere, another seed
    best = runs / "before" / "checkpoints" / "best.ckpt"
    done = run_program("validate", "--ckpt_path", str(best), check=True)
    assert "images or labels have changed since the training" in " ".join(done.stderr.split())
    best = runs / "after" / "checkpoints" / "best.ckpt"
    assert "have changed" not in run_program("validate", "--ckpt_path", str(best), check=True).stderr


@pytest.mark.long
def test_changed_images_of_an_official_split_are_said(config: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"split": "official", "val_dataset": content["data"]["dataset"]}
    config.write_text(yaml.safe_dump(content))
    run_program("fit", "-c", str(config), "--name", "official", check=True)
    best = ("--ckpt_path", str(tmp_path / "runs" / "official" / "checkpoints" / "best.ckpt"))
    assert "have changed" not in run_program("validate", *best, check=True).stderr
    for path in (tmp_path / "images").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert "images or labels have changed" in " ".join(run_program("validate", *best, check=True).stderr.split())


@pytest.mark.long
def test_folds_that_a_user_numbered_are_pooled(experiment: ExperimentFolder) -> None:
    """No `kfold` made the folder, so its names promise nothing."""
    for number in (1, 0):
        experiment.fold(number).path.rename(experiment.fold(number + 1).path)
    experiment.config.unlink()
    assert "cv: 2 of 2 folds" in aggregated(experiment)


@pytest.mark.long
def test_single_runs_that_are_named_like_seeds_are_averaged(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for seed in ("0", "1"):
        words = ("--output_dir", str(folder), "--name", f"seed_{seed}", "--seed_everything", seed)
        run_program("fit", "-c", str(config), *words, check=True)
    assert "is to be expected on new images" in run_program("best", str(folder), check=True).stdout


@pytest.mark.long
def test_moved_data_of_a_single_run_are_found_after_a_resume(config: Path, tmp_path: Path) -> None:
    run_program("fit", "-c", str(config), "--name", "run", check=True)
    run = RunFolder(tmp_path / "runs" / "run")
    (tmp_path / "new").mkdir()
    for part in ("images", "masks"):
        (tmp_path / part).rename(tmp_path / "new" / part)
    words = ("--trainer.max_epochs", "2", "--data.dataset.root", str(tmp_path / "new"))
    run_program("fit", "--ckpt_path", str(run.last), *words, check=True)
    run_program("suspects", str(run), check=True)


@pytest.mark.long
def test_a_fold_that_was_resumed_with_other_settings_is_not_of_the_experiment(experiment: ExperimentFolder) -> None:
    more = ("--trainer.max_epochs", "2", "--data.batch_size", "5")
    run_program("fit", "--ckpt_path", str(experiment.fold(1).last), *more, check=True)
    assert "note: fold_1 was resumed with other settings: data.batch_size (2 and 5)." in aggregated(experiment)
    assert "data.batch_size: 5 there, 2 now" in refused(kfold(experiment, "--resume"))


@pytest.mark.long
def test_a_schedule_may_be_added_when_a_training_goes_on(config: Path, tmp_path: Path) -> None:
    run_program("fit", "-c", str(config), "--name", "run", "--model.lr_scheduler", "null", check=True)
    run = RunFolder(tmp_path / "runs" / "run")
    resume = ("fit", "--ckpt_path", str(run.last), "--trainer.max_epochs", "2")
    done = run_program(*resume, "--model.optimizer.lr", "0.3", check=True)
    assert "(0.01, not 0.3)" in " ".join(done.stderr.split())
    resume = ("fit", "--ckpt_path", str(run.last), "--trainer.max_epochs", "3")
    run_program(*resume, "--model.lr_scheduler", "PolyLR", check=True)


@pytest.mark.long
def test_a_resumed_training_says_which_settings_count(config: Path, tmp_path: Path) -> None:
    run_program("fit", "-c", str(config), "--name", "run", check=True)
    run = RunFolder(tmp_path / "runs" / "run")
    run_program("fit", "--ckpt_path", str(run.last), "--data.batch_size", "4", check=True)
    assert len(run.read_configs()) == 1  # it was finished, so nothing was trained
    more = ("--trainer.max_epochs", "2", "--model.optimizer.lr", "0.3", "--data.batch_size", "5")
    done = run_program("fit", "--ckpt_path", str(run.last), *more, check=True)
    said = " ".join(done.stderr.split())
    assert "the training goes on with the checkpoint's learning rates, and not with those that are asked for" in said
    assert "(0.01, not 0.3)" in said
    assert "was trained with 2 images per optimiser step, and the training goes on with 5 (batch_size x devices" in said
    run_program("fit", "-c", str(config), "--name", "other", check=True)
    table = tmp_path / "out.json"
    other = str(tmp_path / "runs" / "other")
    done = run_program("compare", other, str(run), "--json", str(table), check=True)
    settings = json.loads(table.read_text())["differing_settings"]["run"]
    assert settings["trainer.max_epochs"] == [1, 2]
    assert settings["data.batch_size"] == [2, 5]
    assert "note: run was resumed with other settings: data.batch_size (2 and 5)" in " ".join(done.stdout.split())
    last = Path(other) / "checkpoints" / "last.ckpt"
    plain = run_program("fit", "--ckpt_path", str(last), "--trainer.max_epochs", "2", check=True)
    assert "learning rates, and not" not in plain.stderr
    assert "images per optimiser step" not in plain.stderr


@pytest.mark.long
def test_the_number_of_processes_is_a_setting(experiment: ExperimentFolder, tmp_path: Path) -> None:
    """Each adds its batch to every step. Folds went on with another number, and `compare` did not name it."""
    assert experiment.read_config()["trainer"]["accelerator"] == "cpu"
    two = ("--resume", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "2")
    assert "trainer.devices x num_nodes: 1 then, 2 now" in refused(kfold(experiment, *two))
    other = ExperimentFolder(shutil.copytree(experiment.path, tmp_path / "other"))
    for files in (other, *other.runs()):
        content = files.read_config()
        content["trainer"]["devices"] = "2"
        files.config.write_text(yaml.safe_dump(content))
    table = tmp_path / "out.json"
    run_program("compare", str(experiment.path), str(other.path), "--json", str(table), check=True)
    assert json.loads(table.read_text())["differing_settings"]["other"] == {"trainer.devices x num_nodes": [1, 2]}


@pytest.mark.long
def test_a_checkpoint_that_was_cut_off_is_one_line_wherever_it_was_cut(experiment: ExperimentFolder) -> None:
    """Cut to a small part, it was an `OSError: Invalid argument` with a traceback."""
    best = experiment.fold(0).best
    content = best.read_bytes()
    for size in (*range(1000, 100_000, 7000), *range(100_000, len(content), len(content) // 20)):
        best.write_bytes(content[:size])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(best)
    best.write_bytes(content[:20_000])
    assert "it was damaged or cut off" in refused(run_program("validate", "--ckpt_path", str(best)))


@pytest.mark.long
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(experiment: ExperimentFolder) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, without which root may read all files")
    best = experiment.fold(0).best
    best.chmod(0)
    without_rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*without_rights, sys.executable, "-m", "deeplab_lightning", "validate", "--ckpt_path", str(best)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {best}: Permission denied\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "status", "stderr"),
    [
        ("--help | true", 141, ""),  # `true` reads nothing
        ("--help >&-", 0, ""),
        ("--version | true", 141, "error: the program that reads the output has ended, and so has this command.\n"),
    ],
)
def test_a_closed_output_is_no_traceback(words: str, status: int, stderr: str) -> None:
    command = f"{sys.executable} -m deeplab_lightning {words}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", stderr, status)


class BrokenConnection(L.Callback):
    """Fail as a connection whose other end was closed does."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise BrokenPipeError("the other end is closed")


@pytest.mark.long
def test_another_broken_pipe_keeps_its_traceback(config: Path) -> None:
    done = run_program("fit", "-c", str(config), "--trainer.callbacks+", f"{__name__}.BrokenConnection")
    assert done.returncode == 1
    assert "BrokenPipeError: the other end is closed" in done.stderr
