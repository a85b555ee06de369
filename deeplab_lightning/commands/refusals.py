"""Refuse configurations of a run that contradict themselves, before anything is built or trained."""

from collections.abc import Sequence

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging

from deeplab_lightning.commands.option_values import check_values
from deeplab_lightning.errors import UserError
from deeplab_lightning.schedules import nearest_figure
from deeplab_lightning.usage import usage_error


def refuse_contradictions(command: str, config: Namespace) -> None:
    """Refuse values that no run can use, and options that would contradict others.

    Raises:
        SystemExit: With status 2.
    """
    check_values(command, config.as_dict())
    if null := [key for key in ("trainer", "checkpoint", "model", "data") if config.get(key) is None]:
        usage_error(f"{null[0]} must not be null; leave it out for its defaults.")
    if config.trainer.default_root_dir is not None or config.checkpoint.dirpath is not None:
        usage_error("the run's folder is set by --output_dir and --name, not by trainer or checkpoint.")
    if command == "fit":
        _refuse_figures_of_other_weights(config.checkpoint)
    if config.trainer.get("barebones"):
        usage_error("trainer.barebones switches off checkpoints and logs, which are the result of every command here.")
    of_net = config.model.net.get("init_args", Namespace())
    if of_net.get("num_classes") is not None:
        usage_error("model.net.init_args.num_classes comes from the data; leave it out.")
    if of_net.get("in_channels", 3) != 3:
        usage_error("model.net.init_args.in_channels comes from data.image_format.channels; leave it out.")


def _refuse_figures_of_other_weights(best: Namespace) -> None:
    """Refuse to choose `best.ckpt` by figures that are not of its weights.

    Args:
        best: Arguments of its callback.

    Raises:
        SystemExit: With status 2.
    """
    for name in ("every_n_train_steps", "train_time_interval"):
        if best.get(name):
            usage_error(
                f"checkpoint.{name}: best.ckpt is saved after a validation, whose figures are those of its weights. "
                "Validate more often by trainer.val_check_interval, or save further files by a ModelCheckpoint in "
                "trainer.callbacks."
            )
    if str(best.monitor).startswith("train/"):
        usage_error(
            f"checkpoint.monitor: {best.monitor} says nothing of the images that are held out. Monitor val/miou, "
            "val/loss or another figure of the validation."
        )


def refuse_unknown_monitors(callbacks: Sequence[L.Callback], names: Sequence[str]) -> None:
    """Refuse a callback that waits for a figure that nothing logs, before an epoch is spent.

    Args:
        callbacks: Callbacks of a training.
        names: Figures that the module logs.

    Raises:
        SystemExit: With status 2, if there is one.
    """
    for callback in callbacks:
        if near := nearest_figure(getattr(callback, "monitor", None), names, callbacks):
            usage_error(
                f"{type(callback).__name__} monitors {callback.monitor}, which nothing logs; did you mean {near}?"  # type: ignore[attr-defined]
            )


def refuse_validation_monitors(callbacks: Sequence[L.Callback]) -> None:
    """Refuse to stop early by a figure of the validation in a training that has none.

    Raises:
        SystemExit: With status 2, if there is such a callback.
    """
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.monitor.startswith("val/"):
            usage_error(
                f"{type(callback).__name__} monitors {callback.monitor}, and nothing is validated (data.fold: null). "
                "Hold out a fold, or leave the callback out."
            )


def refuse_two_averages(callbacks: Sequence[L.Callback]) -> None:
    """Refuse two averages of the weights, each of which would take the other's for the weights that train.

    Raises:
        UserError: If there are two.
    """
    names = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    if len(names) > 1:
        raise UserError(
            f"trainer.callbacks: {' and '.join(names)} each average the weights. Keep one: of overlays, give a list "
            "without the other after them, --trainer.callbacks '[...]'."
        )
