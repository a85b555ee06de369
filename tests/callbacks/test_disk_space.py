from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import nn

from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint
from deeplab_lightning.callbacks.disk_space import DiskSpace
from deeplab_lightning.cli import main
from deeplab_lightning.errors import UnavailableError
from tests.conftest import noise_config


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(999, 1)  # 1000 weights of 4 bytes


def trainer_of(folder: Path, module: Net, optimizer: type[torch.optim.Optimizer], **options: Any) -> SimpleNamespace:
    return SimpleNamespace(
        default_root_dir=str(folder),
        is_global_zero=True,
        fast_dev_run=False,
        optimizers=[optimizer(module.parameters(), **options)],
        checkpoint_callbacks=[RunCheckpoint(filename="best", monitor="a"), RunCheckpoint(filename="last")],
    )


@pytest.mark.parametrize(
    ("optimizer", "options", "size"),
    [
        (torch.optim.SGD, {"lr": 1}, 4000),
        (torch.optim.SGD, {"lr": 1, "momentum": 0.9}, 8000),
        (torch.optim.AdamW, {"lr": 1}, 12000),
    ],
)
def test_two_files_and_a_temporary_one_have_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: type[torch.optim.Optimizer], options: dict[str, Any],
    size: int,
) -> None:  # fmt: skip
    module = Net()
    trainer = trainer_of(tmp_path, module, optimizer, **options)
    free = [3 * size]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    DiskSpace().on_train_start(trainer, module)  # type: ignore[arg-type]
    free[0] -= 1
    with pytest.raises(UnavailableError, match=f"{tmp_path}: the checkpoints need"):
        DiskSpace().on_train_start(trainer, module)  # type: ignore[arg-type]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(bytes(size))  # a resumed training replaces it
    DiskSpace().on_train_start(trainer, module)  # type: ignore[arg-type]


def test_the_folds_of_an_experiment_have_to_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fold in range(3):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "job.yaml").touch()
    module, free = Net(), [7 * 4000]
    trainer = trainer_of(tmp_path / "fold_0", module, torch.optim.SGD, lr=1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    DiskSpace().on_train_start(trainer, module)  # type: ignore[arg-type]
    free[0] -= 1
    with pytest.raises(UnavailableError, match="free"):
        DiskSpace().on_train_start(trainer, module)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_training_stops_before_its_first_step(mask_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = noise_config(mask_folder, trainer={"max_epochs": 1})
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(UnavailableError, match=r"runs/full: the checkpoints need .* only 0.001 GB are free"):
        main(["fit", "-c", str(mask_folder / "config.yaml"), "--name", "full"])
    assert not list((mask_folder / "runs" / "full").rglob("*.ckpt"))
