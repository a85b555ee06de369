"""Build the learning-rate schedule of a training, of PyTorch, timm or this package."""

import difflib
import inspect
import math
import sys
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import lightning as L
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from deeplab_lightning.errors import UserError
from deeplab_lightning.timm_schedule import TimmSchedule

Interval = Literal["step", "epoch"]
"""When a schedule is stepped: after every optimiser step or every epoch."""
Schedule: TypeAlias = LRScheduler | Scheduler
"""A schedule of PyTorch or timm."""
# The command line takes the first form that fits, so that the argument after the optimiser, such as `total_steps` or
# `T_max`, is in a configuration only if it was given. `build_schedule` fills it in by its name.
SchedulerFactory: TypeAlias = Callable[[Optimizer, int], Schedule] | Callable[[Optimizer], Schedule]
"""Class or function of the optimiser, or of the optimiser and the length of the training, that returns a schedule."""
Length = Callable[[Interval], int]
"""Function that returns the length of a training in optimiser steps or epochs."""

MONITOR = "val/miou"
"""Metric of schedules that wait for a plateau."""
_OWN_PACKAGES = ("deeplab_lightning", "lightning", "pytorch_lightning")
_LENGTHS = ("total_steps", "T_max", "t_initial")
_LONG = 1_000_000  # steps or epochs, where a schedule is built without the length of its training
_ANY_NUMBER = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
_RATES = ("max_lr", "base_lr")  # of OneCycleLR and CyclicLR


def schedule_config(
    factory: SchedulerFactory, optimizer: Optimizer, trainer: L.Trainer, *, interval: Interval | None = None
) -> dict[str, Any]:
    """Build a schedule, and say when Lightning steps it.

    Args:
        factory: Class, or function, of the schedule. A length that it takes and that is not given is that of the
            training: `total_steps`, `T_max`, `t_initial`, and `total_iters` of PolynomialLR. `max_lr` and `base_lr`
            that are one number are those of the backbone, and multiplied for the other groups.
        optimizer: Optimiser, whose groups have an `lr_multiplier`.
        trainer: Trainer, whose length is that of the training.
        interval: When it is stepped. If None, per epoch; per step, if its length was filled in or it is a PolyLR,
            OneCycleLR or CyclicLR. Schedules of timm follow their `t_in_epochs`, which an interval sets.

    Returns:
        Lightning's configuration of a schedule.

    Raises:
        ValueError: If an argument of the schedule is missing or wrong, the training has no end, or nothing validates
            and the schedule waits for a plateau.
    """
    schedule, interval = build_schedule(factory, optimizer, partial(_training_length, trainer), interval)
    config: dict[str, Any] = {"scheduler": schedule, "interval": interval}
    if isinstance(schedule, ReduceLROnPlateau) or (isinstance(schedule, TimmSchedule) and schedule.plateau):
        monitor = getattr(schedule, "monitor", MONITOR)
        datamodule = getattr(trainer, "datamodule", None)
        if trainer.limit_val_batches == 0 or not getattr(datamodule, "has_validation", True):
            raise UserError(f"the schedule waits for {monitor}, but nothing validates: take another.")
        logged_names: Any = getattr(trainer.lightning_module, "logged_names", None)
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        if logged_names and (near := nearest_figure(monitor, logged_names(), callbacks)):
            raise UserError(f"the schedule waits for {monitor}, which nothing logs; did you mean {near}?")
        # Not stepped by Lightning, which does so after the checkpoints of the epoch: see `step_plateaus`.
        config |= {"monitor": monitor, "reduce_on_plateau": True, "frequency": sys.maxsize}
    return config


def check_schedule(factory: SchedulerFactory, optimizer: Optimizer, *, interval: Interval | None = None) -> None:
    """Build a schedule as for a long training, to find wrong arguments before there is a trainer.

    Raises:
        ValueError: If an argument is missing or wrong.
    """
    build_schedule(factory, optimizer, lambda _: _LONG, interval)


def nearest_figure(monitor: Any, names: Sequence[str], callbacks: Sequence[L.Callback]) -> str | None:
    """Return the figure whose name is most like that of a figure that nothing logs; None if it may be logged.

    Args:
        monitor: Name of the figure; any other value is none.
        names: Figures that the module logs.
        callbacks: Callbacks of the training; those of other packages may log figures of their own.
    """
    known = {*names, "train/loss_step", "train/loss_epoch", "train/lr", "epoch", "step"}
    if not isinstance(monitor, str) or monitor in known:
        return None
    if any(type(callback).__module__.partition(".")[0] not in _OWN_PACKAGES for callback in callbacks):
        return None
    return difflib.get_close_matches(monitor, names, n=1, cutoff=0)[0]


def step_plateaus(trainer: L.Trainer) -> None:
    """Step the schedules that wait for a plateau, after the last validation of an epoch.

    Raises:
        ValueError: If their metric was not logged.
    """
    if trainer.sanity_checking or not trainer.lr_scheduler_configs or not trainer.is_last_batch:
        return
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau:
            if (value := trainer.callback_metrics.get(str(config.monitor))) is None:
                known = ", ".join(sorted(trainer.callback_metrics))
                raise UserError(f"the schedule waits for {config.monitor}, which is not logged; there are {known}.")
            config.scheduler.step(value)  # type: ignore[arg-type]


def build_schedule(
    factory: SchedulerFactory, optimizer: Optimizer, length: Length, interval: Interval | None = None
) -> tuple[LRScheduler, Interval]:
    """Build a schedule and choose its interval, see `schedule_config`."""
    kind, arguments = _class_and_arguments(factory)
    if kind is None:
        parameters = inspect.signature(factory).parameters.values()
        required = [p for p in parameters if p.default is p.empty and p.kind not in _ANY_NUMBER]
        is_filled, unit = len(required) > 1, interval or "step"
        schedule = factory(optimizer, length(unit)) if is_filled else factory(optimizer)  # type: ignore[call-arg]
        name = None
    else:
        unit = _unit(kind, arguments, interval)
        name = _length_name(kind, arguments)
        arguments = _completed(kind, arguments, optimizer)
        is_filled = name is not None
        if name is not None:
            arguments[name] = length(unit) - _warmup_before(kind, arguments)
        schedule = _constructed(kind, arguments, optimizer, name)
    if isinstance(schedule, Scheduler):
        return TimmSchedule(schedule, length_name=name), "epoch" if getattr(schedule, "t_in_epochs", True) else "step"
    if isinstance(schedule, ReduceLROnPlateau):
        if interval == "step":
            raise UserError(f"{type(schedule).__name__} is stepped after validation: set lr_interval to epoch or null.")
        return schedule, "epoch"
    is_per_step = is_filled or isinstance(schedule, (PolyLR, OneCycleLR, CyclicLR))
    return schedule, interval or ("step" if is_per_step else "epoch")


class PolyLR(LambdaLR):
    """Multiply the learning rate by (1 - step / total_steps) ** power, after an optional linear warm-up.

    DeepLab v2 (section 4.1) found it better than a rate that falls in steps. Stepped once per optimiser step.

    Args:
        optimizer: Optimiser, whose groups keep the ratios of their learning rates.
        total_steps: Optimiser steps of the whole training; set by the trainer if left out.
        power: Exponent of the decay.
        warmup_steps: Optimiser steps over which the rate grows linearly from 1 / warmup_steps of the schedule's.

    Raises:
        ValueError: If warmup_steps is negative, or not less than total_steps.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, power: float = 0.9, warmup_steps: int = 0) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise UserError(
                f"warmup_steps must be less than the {total_steps} steps of the training, got {warmup_steps}."
            )

        def multiplier(step: int) -> float:
            warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
            return float(warmup * max(0.0, 1 - step / total_steps) ** power)

        self.total_steps = total_steps
        super().__init__(optimizer, multiplier)


class SequentialSchedule(SequentialLR):
    """Run one schedule after the other, such as a warm-up and a cosine.

    It is PyTorch's SequentialLR in a form that a configuration can hold: its schedules need no optimiser, and a length
    that one of them takes and that is not given is that of its part.

    Args:
        optimizer: Optimiser.
        total_steps: Steps of the whole training; set by the trainer if left out.
        schedulers: Schedules of PyTorch or this package, one more than milestones.
        milestones: Steps at which the next schedule begins, ascending.

    Raises:
        ValueError: If the numbers of schedules and milestones do not fit, or a part has no steps.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, schedulers: list[SchedulerFactory], milestones: list[int]
    ) -> None:
        bounds = [0, *milestones, total_steps]
        if any(end <= start for start, end in pairwise(bounds)):
            raise UserError(f"milestones must ascend between 0 and the {total_steps} steps, got {milestones}.")
        if len(schedulers) != len(milestones) + 1:
            raise UserError(f"got {len(schedulers)} schedulers and {len(milestones)} milestones; one less is needed.")
        lengths = [end - start for start, end in pairwise(bounds)]
        parts = [_part(factory, optimizer, length) for factory, length in zip(schedulers, lengths, strict=True)]
        super().__init__(optimizer, parts, milestones)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and set the rates of the part that runs."""
        super().load_state_dict(state_dict)
        part = self._schedulers[bisect_right(self._milestones, self.last_epoch)]
        _set_rates(self, part.get_last_lr())


class ChainedSchedule(ChainedScheduler):
    """Multiply the factors of several schedules.

    It is PyTorch's ChainedScheduler in a form that a configuration can hold: its schedules need no optimiser, and a
    length that one of them takes and that is not given is that of the training.

    Args:
        optimizer: Optimiser.
        total_steps: Steps of the whole training; set by the trainer if left out.
        schedulers: Schedules of PyTorch or this package.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, schedulers: list[SchedulerFactory]) -> None:
        self.total_steps = total_steps
        super().__init__([_part(factory, optimizer, total_steps) for factory in schedulers], optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a training of the same length.

        Raises:
            ValueError: If the length differs: the factors of the steps so far would be others.
        """
        if state_dict["total_steps"] != self.total_steps:
            raise UserError(
                f"a ChainedSchedule can only resume with the {state_dict['total_steps']} steps that it began with, got "
                f"{self.total_steps}: set its total_steps and train on with the last rates, or take another schedule."
            )
        super().load_state_dict(state_dict)


def _class_and_arguments(factory: SchedulerFactory) -> tuple[type | None, dict[str, Any]]:
    """Return the class that a factory builds, None for another function, and the arguments that are given."""
    if isinstance(factory, type):
        return factory, {}
    if not isinstance(factory, partial):
        return None, {}
    # The command line's is a function of the class and its arguments.
    kind = next((value for value in (factory.func, *factory.args) if isinstance(value, type)), None)
    return kind, dict(factory.keywords)


def _unit(kind: type, arguments: dict[str, Any], interval: Interval | None) -> Interval:
    """Return the unit of a schedule's length; set `t_in_epochs` if an interval is given."""
    if "t_in_epochs" not in inspect.signature(kind).parameters:
        return interval or "step"
    if interval is not None:
        arguments["t_in_epochs"] = interval == "epoch"
    return "epoch" if arguments.get("t_in_epochs", True) else "step"


def _length_name(kind: type, arguments: dict[str, Any]) -> str | None:
    """Return the name of the argument that takes the length of the training, None if there is none or it is given."""
    names = ("total_iters",) if issubclass(kind, PolynomialLR) else _LENGTHS
    name = next((name for name in names if name in inspect.signature(kind).parameters), None)
    is_given = name is not None and arguments.get(name) is not None
    return None if is_given or arguments.get("epochs") is not None else name  # of OneCycleLR


def _completed(kind: type, arguments: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return the arguments with rates per group, and the direction of the monitored metric."""
    arguments = dict(arguments)
    for name in _RATES:
        if isinstance(arguments.get(name), int | float):
            arguments[name] = [arguments[name] * group["lr_multiplier"] for group in optimizer.param_groups]
    if issubclass(kind, ReduceLROnPlateau):
        monitor = arguments.get("monitor") or MONITOR
        if "monitor" in inspect.signature(kind).parameters:  # of Lightning's class
            arguments["monitor"] = monitor
        if "loss" in monitor:
            arguments["mode"] = "min"
        elif "iou" in monitor or "accuracy" in monitor:
            arguments["mode"] = "max"
    return arguments


def _warmup_before(kind: type, arguments: dict[str, Any]) -> int:
    """Return the length of a warm-up of timm that comes before the schedule's own length."""
    is_before = arguments.get("warmup_prefix", "warmup_prefix" not in inspect.signature(kind).parameters)
    return int(arguments.get("warmup_t", 0)) if is_before else 0


def _constructed(kind: type[Any], arguments: dict[str, Any], optimizer: Optimizer, length_name: str | None) -> Schedule:
    """Call the class of a schedule; its arguments are the user's, so an error is the user's mistake."""
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in _ANY_NUMBER]
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        raise UserError(f"{kind.__name__} needs {', '.join(missing)}: set model.lr_scheduler.init_args.{missing[0]}.")
    if length_name is not None and not issubclass(kind, Scheduler | SequentialSchedule | ChainedSchedule):
        kind = _ending_with_training(kind, length_name)
    try:
        return kind(optimizer, **arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind.__name__}: {error}") from error


def _ending_with_training(kind: type[LRScheduler], name: str) -> type[LRScheduler]:
    """Derive a schedule that ends with this training if it is resumed from a checkpoint of another length."""

    class Resumable(kind):  # type: ignore[valid-type, misc]
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            own = {key: value for key, value in vars(self).items() if key in {name, "_schedule_phases"}}
            super().load_state_dict(state_dict)
            if state_dict.get(name) == own[name]:
                return
            self.__dict__.update(own)
            _set_rates(self, _closed_form_rates(self))

    Resumable.__name__ = kind.__name__
    return Resumable


def _part(factory: SchedulerFactory, optimizer: Optimizer, length: int) -> LRScheduler:
    schedule, _ = build_schedule(factory, optimizer, lambda _: length)
    if isinstance(schedule, TimmSchedule | ReduceLROnPlateau):
        name = type(getattr(schedule, "schedule", schedule)).__name__
        raise UserError(f"{name} cannot be one of several schedules; take those of torch.optim.lr_scheduler.")
    return schedule


def _closed_form_rates(schedule: LRScheduler) -> list[Any]:
    """Compute the rates of a schedule's current step from that step alone."""
    compute: Callable[[], list[Any]] = getattr(schedule, "_get_closed_form_lr", schedule.get_lr)
    with warnings.catch_warnings():  # get_lr warns that it is not called by a step
        warnings.simplefilter("ignore")
        return compute()


def _set_rates(schedule: LRScheduler, rates: Sequence[Any]) -> None:
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = list(rates)


def _training_length(trainer: L.Trainer, unit: Interval) -> int:
    """Return the length of a training in optimiser steps or epochs."""
    steps = trainer.estimated_stepping_batches
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return _LONG  # its few steps are the first ones of a long training
    if steps == float("inf"):
        raise UserError("a schedule needs an end: set trainer.max_epochs or max_steps, or lr_scheduler to null.")
    if unit == "step":
        return int(steps)
    steps_per_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    return math.ceil(steps / steps_per_epoch)
