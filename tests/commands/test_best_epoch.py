"""What a training reports belongs to the weights in best.ckpt, whatever else the user's callbacks monitor."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from lightning.pytorch.trainer.states import TrainerFn

from deeplab_lightning import DeepLabV3
from deeplab_lightning.cli import main
from deeplab_lightning.runs import RunFolder
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

HERE = "tests.commands.test_best_epoch"


class LogPlan(L.Callback):
    """Log the given figures as `plan`, one for each validation."""

    def __init__(self, figures: list[float]) -> None:
        self.figures = figures

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            pl_module.log("plan", self.figures[trainer.current_epoch])


class OwnNet(DeepLabV3):
    """A network of a user's own package."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("best")
    draw_noise_data(root)
    return root


def plan(*figures: float) -> dict[str, Any]:
    return {"class_path": f"{HERE}.LogPlan", "init_args": {"figures": list(figures)}}


def fit(folder: Path, name: str, *words: str, epochs: int = 3, callbacks: list[Any] | None = None) -> RunFolder:
    trainer = {"max_epochs": epochs, "num_sanity_val_steps": 0, "callbacks": callbacks or []}
    config = noise_config(folder, trainer=trainer)
    config["model"]["optimizer"] = {"class_path": "AdamW", "init_args": {"lr": 0.005}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(folder / f"{name}.yaml"), "--name", name, *words])
    return RunFolder(folder / "runs" / name)


def check_that_figures_are_those_of_best_ckpt(run: RunFolder, epoch: int) -> None:
    result = json.loads(run.result.read_text())
    assert result["best_epoch"] == epoch
    assert Path(result["checkpoint"]).name == "best.ckpt"
    main(["validate", "--ckpt_path", str(run.best)])
    again = json.loads((run.path / "result_validate.json").read_text())
    assert again["val"]["miou"] == pytest.approx(result["val"]["miou"], abs=1e-6)
    assert sum(map(sum, run.read_confusion())) > 0


@pytest.mark.long
def test_the_result_is_of_an_epoch_that_was_saved(folder: Path) -> None:
    words = ("--checkpoint.monitor", "plan", "--checkpoint.every_n_epochs", "2")
    run = fit(folder, "second", *words, epochs=5, callbacks=[plan(9, 1, 8, 5, 9)])
    check_that_figures_are_those_of_best_ckpt(run, 3)


@pytest.mark.long
def test_a_figure_of_another_name_chooses_the_best_epoch(folder: Path) -> None:
    run = fit(folder, "own", "--checkpoint.monitor", "plan", callbacks=[plan(1, 9, 5)])
    check_that_figures_are_those_of_best_ckpt(run, 1)


@pytest.mark.long
def test_a_checkpoint_of_the_user_does_not_choose_the_best_epoch(folder: Path) -> None:
    top = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    top["init_args"] = {"monitor": "val/loss", "mode": "max", "filename": "top"}  # type: ignore[assignment]
    words = ("--checkpoint.monitor", "plan")
    run = fit(folder, "two", *words, callbacks=[plan(1, 5, 9), top])
    check_that_figures_are_those_of_best_ckpt(run, 2)


@pytest.mark.long
def test_the_loss_of_an_epoch_does_not_depend_on_the_accumulation(folder: Path) -> None:
    words = ("--model.optimizer.lr", "0", "--trainer.accumulate_grad_batches")
    one, two = (fit(folder, f"parts_{parts}", *words, parts, epochs=1).read_metrics() for parts in ("1", "2"))
    assert two[0]["train/loss"] == pytest.approx(one[0]["train/loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--checkpoint.every_n_train_steps", "2"], "checkpoint.every_n_train_steps: best.ckpt is saved after a val"),
        (["--checkpoint.monitor", "train/loss"], "checkpoint.monitor: train/loss says nothing of the images"),
    ],
)
def test_figures_of_other_weights_choose_no_epoch(
    folder: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        fit(folder, "refused", *words)
    assert ending.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_progress_bar_of_the_user_takes_the_place_of_ours(folder: Path) -> None:
    run = fit(folder, "bar", epochs=1, callbacks=[{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}])
    assert run.result.is_file()


@pytest.mark.long
def test_folds_of_an_own_network_are_predicted(folder: Path) -> None:
    config = noise_config(folder, trainer={"max_epochs": 1, "num_sanity_val_steps": 0})
    config["model"]["net"]["class_path"] = f"{HERE}.OwnNet"
    (folder / "own_net.yaml").write_text(yaml.safe_dump(config))
    words = ("-c", str(folder / "own_net.yaml"), "--name", "own_net", "--predictions")
    run_program("kfold", *words, check=True, timeout=600)
    for fold in range(2):
        predictions = RunFolder(folder / "runs" / "own_net" / f"fold_{fold}").val_predictions
        assert predictions.table.is_file()
