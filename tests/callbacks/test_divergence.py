from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deeplab_lightning.callbacks import StopOnDivergence
from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint
from deeplab_lightning.errors import UserError
from tests.test_module import trainer


class Losses(L.LightningModule):
    """Train a weight, with losses that are not finite in some steps, which the optimiser skips."""

    def __init__(self, bad: range, num_batches: int) -> None:
        super().__init__()
        self.layer, self.bad, self.num_batches = nn.Linear(1, 1), bad, num_batches

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0][:, None].to(self.dtype)).square().mean()
        return loss * float("inf") if self.global_step in self.bad else loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(self.num_batches)))


def run(folder: Path, module: Losses, **arguments: Any) -> int:
    """Train two epochs, and return the number of steps."""
    fit = trainer(folder, max_epochs=2, callbacks=[StopOnDivergence()], enable_checkpointing=False, **arguments)
    fit.fit(module)
    return fit.global_step


@pytest.mark.parametrize(
    ("bad", "num_batches"), [(range(49), 80), (range(60, 108), 80), (range(1, 4), 4), (range(0), 3)]
)
def test_some_losses_may_be_infinite(tmp_path: Path, bad: range, num_batches: int) -> None:
    assert run(tmp_path, Losses(bad, num_batches)) == 2 * num_batches


@pytest.mark.parametrize(
    ("bad", "num_batches", "arguments", "steps"),
    [
        (range(1, 1000), 1000, {}, 100),  # the look after 50 batches sees 49 of them
        (range(20, 1000), 60, {}, 100 + 10),  # over the end of an epoch
        (range(3, 6), 3, {}, 6),  # the second epoch
        (range(2), 10, {"max_steps": 2}, 2),
        (range(4), 3, {"limit_train_batches": 2}, 2),
    ],
)
def test_an_epoch_or_50_steps_without_a_finite_loss_stop_the_training(
    tmp_path: Path, bad: range, num_batches: int, arguments: dict[str, Any], steps: int
) -> None:
    module = Losses(bad, num_batches)
    with pytest.raises(UserError, match=f"the loss is not finite since step {bad.start + 1}, learning rate 0.25. Try"):
        run(tmp_path, module, **arguments)
    assert module.trainer.global_step == steps


def test_statistics_that_are_not_finite_stop_the_training(tmp_path: Path) -> None:
    module = Losses(range(0), 3)
    module.norm = nn.BatchNorm2d(2)
    module.norm.running_var.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(UserError, match="the weights are not finite since step 3"):
        run(tmp_path, module)


@pytest.mark.parametrize("precision", ["32-true", "16-true"])
def test_the_advice_names_the_precision_where_it_may_help(tmp_path: Path, precision: Any) -> None:
    with pytest.raises(UserError) as stop:
        run(tmp_path, Losses(range(9), 3), precision=precision)
    assert ("precision: bf16-mixed or 32-true" in str(stop.value)) == (precision == "16-true")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    module = Losses(range(0), 3)
    module.layer.weight.data.fill_(float("inf"))
    fit = trainer(tmp_path, max_epochs=1, callbacks=[RunCheckpoint(dirpath=str(tmp_path), filename="last")])
    with pytest.warns(UserWarning, match=r"not finite: .*last.ckpt is not written"):
        fit.fit(module)
    assert not (tmp_path / "last.ckpt").exists()
