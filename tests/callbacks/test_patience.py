"""Test what is said of an early stopping that cannot stop."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from deeplab_lightning.callbacks.patience import PatienceWarning

TRAINER = {
    "max_epochs": 9,
    "max_steps": -1,
    "fast_dev_run": False,
    "check_val_every_n_epoch": 2,
    "num_training_batches": 10,
    "val_check_batch": 10,
}


@pytest.mark.parametrize(
    ("patience", "change", "is_said"),
    [
        (5, {}, True),
        (4, {}, False),
        (5, {"val_check_batch": 4}, False),
        (10, {"val_check_batch": 4}, True),
        (5, {"max_epochs": -1}, False),
        (5, {"max_epochs": None}, False),
        (5, {"max_steps": 100}, False),
        (5, {"fast_dev_run": True}, False),
        (5, {"check_val_every_n_epoch": None}, False),
    ],
)
def test_a_patience_that_outlasts_the_training_is_said(patience: int, change: dict[str, Any], is_said: bool) -> None:
    callbacks = [EarlyStopping("val/miou", mode="max", patience=patience), EarlyStopping("train/loss", patience=100)]
    trainer: Any = SimpleNamespace(**{**TRAINER, **change}, callbacks=callbacks)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        PatienceWarning().on_train_start(trainer, None)  # type: ignore[arg-type]
    assert len(found) == is_said
