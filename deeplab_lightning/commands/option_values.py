"""Check the values of options before anything is built, so that a wrong one costs a second and not hours."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deeplab_lightning.usage import usage_error


class _Range(NamedTuple):
    """Hold the numbers that an option takes; None is always allowed."""

    low: float
    high: float = math.inf
    has_low: bool = True  # whether the lowest number itself is allowed
    has_high: bool = True

    def holds(self, value: Any) -> bool:
        if value is None or isinstance(value, (bool, str)):  # `auto`, or of another type: the parser's business
            return True
        if isinstance(value, (list, tuple)):
            return all(map(self.holds, value))
        if not isinstance(value, (int, float)) or math.isnan(value):
            return not isinstance(value, float)
        above = value >= self.low if self.has_low else value > self.low
        return above and (value <= self.high if self.has_high else value < self.high) and not math.isinf(value)

    def __str__(self) -> str:
        low = f"{'at least' if self.has_low else 'above'} {self.low:,.10g}"
        if math.isinf(self.high):
            return low
        return f"{low} and {'at most' if self.has_high else 'below'} {self.high:,.10g}"


_MANY = 1_000_000
_LARGEST_SEED = 2**32 - 1
_RANGES = {
    "seed_everything": _Range(0, _LARGEST_SEED),
    "csv_size": _Range(1, 65_535),
    "data.batch_size": _Range(1, _MANY),
    "data.eval_batch_size": _Range(1, _MANY),
    "data.num_workers": _Range(0, 1000),
    "data.split_seed": _Range(0, _LARGEST_SEED),
    "data.n_folds": _Range(2, _MANY),
    "data.repeat_rare": _Range(0, 1),
    "data.copy_paste.init_args.probability": _Range(0, 1),
    "data.train_transforms.init_args.flip_probability": _Range(0, 1),
    "data.train_transforms.init_args.rare_class_probability": _Range(0, 1),
    "data.train_transforms.init_args.max_class_share": _Range(0, 1, has_low=False),
    "data.image_format.channels": _Range(1, _MANY),
    "data.eval_transforms.init_args.max_size": _Range(1, _MANY),
    "model.net.init_args.aspp_channels": _Range(1, _MANY),
    "model.net.init_args.dropout": _Range(0, 1, has_high=False),
    "model.loss.init_args.label_smoothing": _Range(0, 1),
    "model.loss.init_args.band_rows": _Range(1, _MANY),
    "model.head_lr_multiplier": _Range(0),
    "model.head_bias_lr_multiplier": _Range(0),
    "model.base_batch_size": _Range(1, _MANY),
    "model.backbone_lr_decay": _Range(0, 1, has_low=False),
    "model.optimizer.init_args.lr": _Range(0, 100),
    "model.optimizer.init_args.momentum": _Range(0, 1, has_high=False),
    "model.optimizer.init_args.weight_decay": _Range(0, 100),
    "model.lr_scheduler.init_args.power": _Range(0, 100, has_low=False),
    "model.lr_scheduler.init_args.warmup_steps": _Range(0),
    "trainer.max_epochs": _Range(-1, _MANY),
    "trainer.max_steps": _Range(-1),
    "trainer.accumulate_grad_batches": _Range(1, _MANY),
    "trainer.check_val_every_n_epoch": _Range(1, _MANY),
    "trainer.gradient_clip_val": _Range(0),
    "trainer.limit_val_batches": _Range(0),
    "trainer.num_sanity_val_steps": _Range(-1),
    "trainer.num_nodes": _Range(1, _MANY),
    "checkpoint.save_top_k": _Range(-1, _MANY),
}
_OF_TRAINING = {"trainer.limit_train_batches": _Range(0, has_low=False)}
_NOT_NULL = tuple(
    f"data.train_transforms.init_args.{name}"
    for name in (
        *("crop_size", "scale_range", "flip_probability", "brightness", "contrast", "saturation", "fill"),
        *("rare_class_probability", "max_class_share"),
    )
)
_CHOICES = {
    "checkpoint.mode": ("min", "max"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu", "xla"),
}


def check_values(command: str, config: Mapping[str, Any]) -> None:
    """Refuse values that no run can use, with the option, the value and what is allowed.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        config: The configuration of the command, with nested mappings.

    Raises:
        SystemExit: With status 2.
    """
    for key, allowed in (_RANGES | (_OF_TRAINING if command == "fit" else {})).items():
        value = _at(config, key)
        if not allowed.holds(value):
            usage_error(f"{key} must be {allowed}, got {value}.")
    for key in _NOT_NULL:  # the parser takes null for any number of a class that may be null itself
        group, _, name = key.rpartition(".")
        arguments = _at(config, group)
        if isinstance(arguments, Mapping) and name in arguments and arguments[name] is None:
            usage_error(f"{key} must be a number or a list of numbers, got null.")
    for key, choices in _CHOICES.items():
        value = _at(config, key)
        if isinstance(value, str) and value not in choices:
            usage_error(f"{key} must be one of {', '.join(choices)}, got {value}.")
    check_name(config.get("name"))


def check_name(name: Any) -> None:
    """Refuse a name of a run, an experiment or a grid that leads out of its output folder.

    Args:
        name: The name; None is made up later.

    Raises:
        SystemExit: With status 2.
    """
    if name is not None and _leaves(str(name)):
        usage_error(f"name must be the name of a folder in output_dir, got {str(name)!r}.")


def _leaves(name: str) -> bool:
    """Check whether a name is no folder below the one that it is joined to."""
    return os.path.normpath(name) in {".", ""} or ".." in Path(name).parts or Path(name).is_absolute()


def _at(config: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, None where there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
