"""Further loggers by one word, by the real command."""

import os
import sqlite3
import time
from pathlib import Path

import psutil
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deeplab_lightning.cli import main
from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.tables import read_csv
from tests.conftest import noise_config
from tests.processes import Program, run_program


@pytest.mark.long
def test_loggers_are_chosen_by_a_word_and_a_resumed_training_goes_on_in_them(mask_folder: Path) -> None:
    config = noise_config(mask_folder, trainer={"num_sanity_val_steps": 0, "log_every_n_steps": 1})
    config["trainer"]["callbacks"] = [{"class_path": "PredictionPanels", "init_args": {"every_n_epochs": 1}}]
    (mask_folder / "c.yaml").write_text(yaml.safe_dump({"loggers": ["tensorboard", "csv", "mlflow"], **config}))
    words = ["fit", "-c", str(mask_folder / "c.yaml"), "--name", "run"]
    run_program(*words, "--trainer.max_epochs", "1", check=True)
    run_program(*words, "--trainer.max_epochs", "2", "--ckpt_path", "last", check=True)
    run = mask_folder / "runs" / "run"

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert len(events.Scalars("val/miou")) == 2
    assert len(events.Images("val/panels")) == 2
    assert [len(read_csv(path)) > 0 for path in sorted((run / "csv").glob("*/metrics.csv"))] == [True, True]
    with sqlite3.connect(run.parent / "mlflow.db") as store:
        assert store.execute("select name from runs").fetchall() == [("run",)]
        assert store.execute("select count(*) from metrics where key = 'val/miou'").fetchone() == (2,)
    store.close()
    assert len([*(run.parent / "mlflow_files").rglob("epoch_*.png")]) == 2

    other = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{mask_folder / 'other.db'}"}
    more = [*words, "--trainer.max_epochs", "3", "--ckpt_path", "last", "--loggers", "mlflow"]
    run_program(*more, env=other, cwd=mask_folder, check=True)
    with sqlite3.connect(mask_folder / "other.db") as store:
        assert store.execute("select count(*) from metrics where key = 'val/miou'").fetchone() == (1,)
    store.close()
    (run / "mlflow_run.json").write_bytes(b"\xff")
    done = run_program(*more)
    assert done.returncode == 1
    assert "mlflow_run.json: is damaged" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_configuration_without_a_logger_logs_to_wandb_and_to_the_named_ones(mask_folder: Path) -> None:
    """Without configs/base.yaml, W&B got nothing, and a further logger ended in a traceback."""
    config = noise_config(mask_folder, trainer={"num_sanity_val_steps": 0, "max_epochs": 1, "log_every_n_steps": 1})
    (mask_folder / "c.yaml").write_text(yaml.safe_dump({**config, "wandb": "offline", "loggers": "csv"}))
    run_program("fit", "-c", str(mask_folder / "c.yaml"), "--name", "run", cwd=mask_folder, check=True)
    run = mask_folder / "runs" / "run"
    assert len([*run.glob("wandb/offline-run-*")]) == 1
    assert len([*run.glob("csv/*/metrics.csv")]) == 1
    assert not (run / "lightning_logs").exists()


@pytest.mark.long
def test_folds_that_start_together_share_a_store(mask_folder: Path) -> None:
    """Both made the tables of the new store, and one of them failed."""
    config = noise_config(mask_folder, trainer={"num_sanity_val_steps": 0, "max_epochs": 1})
    (mask_folder / "c.yaml").write_text(yaml.safe_dump({"loggers": "mlflow", **config}))
    run_program("kfold", "-c", str(mask_folder / "c.yaml"), "--name", "cv", "--jobs", "2", check=True)
    with sqlite3.connect(mask_folder / "runs" / "mlflow.db") as store:
        assert sorted(store.execute("select name from runs")) == [("cv/fold_0",), ("cv/fold_1",)]
    store.close()


def test_a_server_that_does_not_answer_is_named_at_once(mask_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client would try again for minutes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (mask_folder / "c.yaml").write_text(yaml.safe_dump(noise_config(mask_folder, trainer={"max_epochs": 1})))
    with pytest.raises(UnavailableError, match=r"127.0.0.1:9 does not answer within 2 s"):
        main(["fit", "-c", str(mask_folder / "c.yaml"), "--loggers", "mlflow"])


def test_a_logger_whose_package_is_missing_is_refused_with_the_package(
    mask_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplab_lightning.tracking.loggers.find_spec", lambda name: None)
    (mask_folder / "c.yaml").write_text(yaml.safe_dump(noise_config(mask_folder, trainer={"max_epochs": 1})))
    with pytest.raises(UnavailableError, match="loggers: mlflow needs .*: pip install mlflow"):
        main(["fit", "-c", str(mask_folder / "c.yaml"), "--loggers", "mlflow"])
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(mask_folder / "c.yaml"), "--loggers", "neptune"])


@pytest.mark.long
def test_a_training_goes_on_when_the_process_of_wandb_is_killed(mask_folder: Path) -> None:
    """As by the kernel where memory is short: it ended with a hundred lines of traceback."""
    trainer = {"num_sanity_val_steps": 0, "max_epochs": 6, "log_every_n_steps": 1}
    callbacks = [{"class_path": "PredictionPanels", "init_args": {"every_n_epochs": 1}}]
    config = noise_config(mask_folder, trainer={**trainer, "callbacks": callbacks})
    (mask_folder / "c.yaml").write_text(yaml.safe_dump({**config, "wandb": "offline", "loggers": "csv"}))
    program = Program("fit", "-c", str(mask_folder / "c.yaml"), "--name", "run")
    run = mask_folder / "runs" / "run"
    while not (run / "metrics.csv").is_file():
        assert program.poll() is None
        time.sleep(0.05)
    [child] = [child for child in psutil.Process(program.pid).children(recursive=True) if "wandb-core" in child.name()]
    child.kill()
    stdout, stderr = program.communicate(timeout=200)
    assert program.wait() == 0, stderr
    assert stderr.count("WandbLogger failed") == 1
    assert "the training goes on without it" in stderr
    assert "Traceback" not in stdout + stderr
    assert [row["epoch"] for row in read_csv(run / "metrics.csv")] == [str(epoch) for epoch in range(6)]
    assert (run / "result.json").is_file()
    [table] = run.glob("csv/*/metrics.csv")  # the other logger goes on
    assert len([row for row in read_csv(table) if row["val/miou"]]) == 6
