"""Schedules are configured as on the command line, trained with by the real trainer and compared with plain loops."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm.scheduler
import torch
from lightning.pytorch.cli import instantiate_module
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.optim import SGD, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from deeplab_lightning import DeepLabV3, SegmentationModule
from deeplab_lightning.errors import UserError
from deeplab_lightning.schedules import PolyLR
from tests.test_module import trainer

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 4, 3  # steps per epoch
TOTAL = EPOCHS * STEPS
LR, HEAD, HEAD_BIAS = 0.1, 10.0, 20.0
MULTIPLIERS = [1.0, 1.0, HEAD, HEAD, HEAD_BIAS]
MIOUS = [0.5, 0.4, 0.3, 0.2]
TORCH, TIMM = "torch.optim.lr_scheduler", "timm.scheduler"
Rates = list[list[float]]

# Class -> its arguments, those with which the plain loop builds it, and when it is stepped.
TABLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    f"{TORCH}.LambdaLR": ({"lr_lambda": "tests.test_schedules.halved"}, {"lr_lambda": lambda n: 0.5**n}, "epoch"),
    f"{TORCH}.MultiplicativeLR": ({"lr_lambda": "tests.test_schedules.half"}, {"lr_lambda": lambda _: 0.5}, "epoch"),
    f"{TORCH}.StepLR": ({"step_size": 2}, {"step_size": 2}, "epoch"),
    f"{TORCH}.MultiStepLR": ({"milestones": [1, 3], "gamma": 0.5}, {"milestones": [1, 3], "gamma": 0.5}, "epoch"),
    f"{TORCH}.ConstantLR": ({"total_iters": 2}, {"total_iters": 2}, "epoch"),
    f"{TORCH}.LinearLR": ({"start_factor": 0.1, "total_iters": 3}, {"start_factor": 0.1, "total_iters": 3}, "epoch"),
    f"{TORCH}.ExponentialLR": ({"gamma": 0.9}, {"gamma": 0.9}, "epoch"),
    f"{TORCH}.PolynomialLR": ({"power": 2.0}, {"power": 2.0, "total_iters": TOTAL}, "step"),
    f"{TORCH}.CosineAnnealingLR": ({"eta_min": 0.01}, {"eta_min": 0.01, "T_max": TOTAL}, "step"),
    f"{TORCH}.CosineAnnealingWarmRestarts": ({"T_0": 3}, {"T_0": 3}, "epoch"),
    f"{TORCH}.CyclicLR": (
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4},
        {"base_lr": [0.01 * m for m in MULTIPLIERS], "max_lr": [0.1 * m for m in MULTIPLIERS], "step_size_up": 4},
        "step",
    ),
    f"{TORCH}.OneCycleLR": (
        {"max_lr": 0.2},
        {"max_lr": [0.2 * m for m in MULTIPLIERS], "total_steps": TOTAL},
        "step",
    ),
    f"{TORCH}.ReduceLROnPlateau": ({"patience": 0}, {"patience": 0, "mode": "max"}, "epoch"),
    f"{TIMM}.CosineLRScheduler": ({"warmup_t": 1}, {"warmup_t": 1, "t_initial": EPOCHS}, "epoch"),
    f"{TIMM}.TanhLRScheduler": (
        {"t_in_epochs": False},
        {"t_in_epochs": False, "t_initial": TOTAL},
        "step",
    ),
    f"{TIMM}.PolyLRScheduler": (
        {"t_in_epochs": False, "warmup_t": 4, "warmup_prefix": True},
        {"t_in_epochs": False, "warmup_t": 4, "warmup_prefix": True, "t_initial": TOTAL - 4},
        "step",
    ),
    f"{TIMM}.WSDLRScheduler": (
        {"t_in_epochs": False, "decay_t": 4, "warmup_t": 2},
        {"t_in_epochs": False, "decay_t": 4, "warmup_t": 2, "t_initial": TOTAL - 2},
        "step",
    ),
    f"{TIMM}.StepLRScheduler": ({"decay_t": 2, "decay_rate": 0.5}, {"decay_t": 2, "decay_rate": 0.5}, "epoch"),
    f"{TIMM}.MultiStepLRScheduler": (
        {"decay_t": [1, 3], "decay_rate": 0.5},
        {"decay_t": [1, 3], "decay_rate": 0.5},
        "epoch",
    ),
    f"{TIMM}.PlateauLRScheduler": ({"patience_t": 0}, {"patience_t": 0}, "epoch"),
}
COMBINED = {"LRScheduler", "SequentialLR", "ChainedScheduler"}  # see the tests of their forms for configurations


def halved(epoch: int) -> float:
    return 0.5**epoch


def half(epoch: int) -> float:
    return 0.5


class Recorder(SegmentationModule):
    """Records the rates of each step; its network is not computed."""

    def on_fit_start(self) -> None:
        self.rates: Rates = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        return 0.0 * next(self.net.head.parameters()).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def _log_metrics(self, stage: str) -> None:
        self.log("val/miou", MIOUS[self.current_epoch % len(MIOUS)])


def module(schedule: Any, **arguments: Any) -> Recorder:
    """Builds a module whose schedule is given as in a configuration, or as an object."""
    if isinstance(schedule, dict | str):
        init_args = {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False, "num_classes": 2}
        config = {
            "net": {"class_path": "DeepLabV3", "init_args": init_args},
            "optimizer": {"class_path": "SGD", "init_args": {"lr": LR, "momentum": 0.9}},
            "lr_scheduler": schedule,
        }
        return instantiate_module(Recorder, config | arguments)
    optimizer = partial(SGD, lr=LR, momentum=0.9)
    net = DeepLabV3(2, backbone="test_resnet", aspp_channels=8, pretrained=False)
    return Recorder(net, optimizer=optimizer, lr_scheduler=schedule, **arguments)


class SaveAt(L.Callback):
    """Saves a checkpoint at the end of an epoch."""

    def __init__(self, epoch: int, path: Path) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def fit(built: Recorder, folder: Path, *, epochs: int = EPOCHS, ckpt_path: Path | None = None, **options: Any) -> Rates:
    data: Any = torch.zeros(STEPS, 1)
    loader: Any = DataLoader(data)
    run = trainer(folder, max_epochs=epochs, num_sanity_val_steps=0, enable_checkpointing=False, **options)
    run.fit(built, loader, loader, ckpt_path=None if ckpt_path is None else str(ckpt_path), weights_only=True)
    return built.rates


def assert_equal(rates: Rates, expected: Rates) -> None:
    assert len({tuple(step) for step in expected}) > 1  # constant rates would prove nothing
    for step, expected_step in zip(rates, expected, strict=True):
        assert step == pytest.approx(expected_step, rel=1e-9, abs=1e-15)


def plain(build: Callable[[Optimizer], Any], interval: str) -> Rates:
    """Returns the rates of a loop without Lightning."""
    optimizer = SGD([{"params": [torch.zeros(1)], "lr": LR * m} for m in MULTIPLIERS], lr=LR, momentum=0.9)
    schedule, rates = build(optimizer), []
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            if interval == "step" and isinstance(schedule, Scheduler):
                schedule.step_update(epoch * STEPS + step + 1)
            elif interval == "step":
                schedule.step()
        if isinstance(schedule, Scheduler) and interval == "epoch":
            schedule.step(epoch + 1, MIOUS[epoch])
        elif isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
            schedule.step(MIOUS[epoch])
        elif interval == "epoch":
            schedule.step()
    return rates


def class_of(path: str) -> Any:
    return getattr(lr_scheduler if path.startswith(TORCH) else timm.scheduler, path.rpartition(".")[2])


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # timm's, of its plateau
        yield


def test_the_table_holds_every_schedule_of_torch_and_timm() -> None:
    torchs = {
        n for n, c in vars(lr_scheduler).items() if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler)
    }
    timms = {n for n, c in vars(timm.scheduler).items() if inspect.isclass(c) and issubclass(c, Scheduler)}
    in_table = {path.rpartition(".")[2] for path in TABLE}
    assert in_table == {name for name in (torchs | timms) - COMBINED if not name.startswith("_")}


@pytest.mark.long
@pytest.mark.parametrize("path", TABLE)
def test_rates_are_those_of_a_plain_loop(path: str, tmp_path: Path) -> None:
    given, full, interval = TABLE[path]
    rates = fit(module({"class_path": path, "init_args": given}), tmp_path)
    expected = plain(lambda optimizer: class_of(path)(optimizer, **full), interval)
    assert_equal(rates, expected)


@pytest.mark.parametrize(
    ("schedule", "interval", "build", "expected_interval"),
    [
        ("CosineAnnealingLR", "epoch", lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS), "epoch"),
        ({"class_path": "StepLR", "init_args": {"step_size": 2}}, "step", lambda o: lr_scheduler.StepLR(o, 2), "step"),
        ("CosineLRScheduler", "step", lambda o: timm.scheduler.CosineLRScheduler(o, TOTAL, t_in_epochs=False), "step"),
        ("PolyLR", None, lambda o: PolyLR(o, TOTAL), "step"),
        ({"class_path": "PolyLR", "init_args": {"total_steps": 20}}, None, lambda o: PolyLR(o, 20), "step"),
        (
            {"class_path": "PolynomialLR", "init_args": {"total_iters": 7}},
            None,
            lambda o: lr_scheduler.PolynomialLR(o, 7),
            "epoch",
        ),
        (
            {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1, "epochs": 5, "steps_per_epoch": 3}},
            None,
            lambda o: lr_scheduler.OneCycleLR(o, [0.1 * m for m in MULTIPLIERS], 15),
            "step",
        ),
        (CosineAnnealingLR, None, lambda o: CosineAnnealingLR(o, TOTAL), "step"),
        (partial(CosineAnnealingLR, T_max=5), None, lambda o: CosineAnnealingLR(o, 5), "epoch"),
        (lambda o, steps: CosineAnnealingLR(o, steps), None, lambda o: CosineAnnealingLR(o, TOTAL), "step"),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.5), None, lambda o: lr_scheduler.ExponentialLR(o, 0.5), "epoch"),
    ],
)
def test_lengths_and_intervals_that_are_given_are_used(
    schedule: Any, interval: str | None, build: Any, expected_interval: str, tmp_path: Path
) -> None:
    assert_equal(fit(module(schedule, lr_interval=interval), tmp_path), plain(build, expected_interval))


def test_schedules_follow_each_other_in_a_configuration(tmp_path: Path) -> None:
    warm_up = {"class_path": "LinearLR", "init_args": {"start_factor": 0.1, "total_iters": 4}}
    arguments = {"schedulers": [warm_up, "CosineAnnealingLR"], "milestones": [4]}

    def build(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, TOTAL - 4)]
        return lr_scheduler.SequentialLR(optimizer, parts, [4])

    rates = fit(module({"class_path": "SequentialSchedule", "init_args": arguments}), tmp_path)
    assert_equal(rates, plain(build, "step"))


def test_factors_of_schedules_are_multiplied_in_a_configuration(tmp_path: Path) -> None:
    parts = [
        {"class_path": "ConstantLR", "init_args": {"total_iters": 2}},
        {"class_path": "ExponentialLR", "init_args": {"gamma": 0.5}},
        "CosineAnnealingLR",
    ]

    def build(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
        constant = lr_scheduler.ConstantLR(optimizer, total_iters=2)
        cosine = CosineAnnealingLR(optimizer, TOTAL)
        return lr_scheduler.ChainedScheduler([constant, lr_scheduler.ExponentialLR(optimizer, 0.5), cosine])

    schedule = {"class_path": "ChainedSchedule", "init_args": {"schedulers": parts}}
    assert_equal(fit(module(schedule), tmp_path, callbacks=[SaveAt(1, tmp_path / "a.ckpt")]), plain(build, "step"))
    with pytest.raises(UserError, match="can only resume with the 12 steps that it began with, got 15"):
        fit(module(schedule), tmp_path, epochs=5, ckpt_path=tmp_path / "a.ckpt")


def test_a_plateau_of_a_loss_is_one_that_stops_falling(tmp_path: Path) -> None:
    class Losses(Recorder):
        def on_validation_epoch_end(self) -> None:
            self.log("val/loss", MIOUS[self.current_epoch])

    arguments = {"monitor": "val/loss", "patience": 0}
    built = module({"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": arguments})
    built.__class__ = Losses
    assert {step[0] for step in fit(built, tmp_path)} == {LR}


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("ExponentialLR", {}, r"ExponentialLR needs gamma: set model.lr_scheduler.init_args.gamma\."),
        ({"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1, "pct_start": 2.0}}, {}, "OneCycleLR: .*pct_start"),
        (f"{TORCH}.ReduceLROnPlateau", {"limit_val_batches": 0}, "waits for val/miou, but nothing validates"),
        ("PolyLR", {"epochs": -1}, "a schedule needs an end: set trainer.max_epochs"),
        (
            {"class_path": "ChainedSchedule", "init_args": {"schedulers": ["CosineLRScheduler"]}},
            {},
            "CosineLRScheduler cannot be one of several schedules",
        ),
        (
            {"class_path": "SequentialSchedule", "init_args": {"schedulers": ["PolyLR"] * 2, "milestones": [12]}},
            {},
            r"milestones must ascend between 0 and the 12 steps, got \[12\]",
        ),
        (
            {"class_path": "SequentialSchedule", "init_args": {"schedulers": ["PolyLR"], "milestones": [3]}},
            {},
            "got 1 schedulers and 1 milestones",
        ),
    ],
)
def test_unusable_schedules_are_refused_before_training(
    schedule: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(module(schedule), tmp_path, **options)


def test_a_plateau_is_not_stepped_per_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ReduceLROnPlateau is stepped after validation: set lr_interval to epoch"):
        fit(module(f"{TORCH}.ReduceLROnPlateau", lr_interval="step"), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("path", TABLE)
def test_a_resumed_schedule_goes_on_as_if_it_had_not_stopped(path: str, tmp_path: Path) -> None:
    schedule = {"class_path": path, "init_args": TABLE[path][0]}
    whole = fit(module(schedule), tmp_path, callbacks=[SaveAt(1, tmp_path / "a.ckpt")])
    assert fit(module(schedule), tmp_path, ckpt_path=tmp_path / "a.ckpt") == whole[2 * STEPS :]


@pytest.mark.long
@pytest.mark.parametrize("saved_epoch", [0, 1])
@pytest.mark.parametrize(
    "schedule",
    [
        "PolyLR",
        "PolynomialLR",
        "CosineAnnealingLR",
        {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.2}},
        "CosineLRScheduler",
        {"class_path": "TanhLRScheduler", "init_args": {"t_in_epochs": False}},
        {"class_path": "SequentialSchedule", "init_args": {"schedulers": ["LinearLR", "PolyLR"], "milestones": [4]}},
    ],
)
def test_a_training_resumed_with_more_epochs_goes_on_with_the_rates_of_the_longer_one(
    schedule: Any, saved_epoch: int, tmp_path: Path
) -> None:
    fit(module(schedule), tmp_path, epochs=2, callbacks=[SaveAt(saved_epoch, tmp_path / "a.ckpt")])
    longer = fit(module(schedule), tmp_path)
    rates = fit(module(schedule), tmp_path, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(rates, longer[(saved_epoch + 1) * STEPS :])
