"""Train some steps on one device without checkpoints, loggers and validation, to try a setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning

from deeplab_lightning.callbacks.freeze import FreezeBackbone
from deeplab_lightning.callbacks.network_switches import CompileNetwork, GradientCheckpointing
from deeplab_lightning.commands.surroundings import user_mistakes
from deeplab_lightning.commands.training import build_fit

_OF_THE_TRAINING = ("accelerator", "precision", "accumulate_grad_batches", "gradient_clip_val", "deterministic")
_CHANGE_THE_NETWORK = (BaseFinetuning, CompileNetwork, GradientCheckpointing)


def train_some_steps(args: Sequence[str], callback: L.Callback, steps: int, scratch: str, *, is_quiet: bool) -> None:
    """Train some steps as `fit` does with one rate; callbacks that change the network act, and all others do not.

    Args:
        args: Options of `fit`.
        callback: Acts besides those of the options.
        steps: Number of optimiser steps.
        scratch: Folder for what is written meanwhile.
        is_quiet: Whether the callbacks that do not act are left unnamed.
    """
    own = ["--output_dir", scratch, "--name", "short", "--wandb", "disabled"]
    module, data, settings = build_fit([*args, *own])
    module.scheduler_factory = None
    kept = {key: value for key, value in settings.items() if key in _OF_THE_TRAINING}
    callbacks = [*_of_the_network(settings["callbacks"], is_quiet=is_quiet), callback]
    options: dict[str, Any] = {"devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    options |= dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    with user_mistakes(TypeError):
        trainer = L.Trainer(
            **kept, **options, callbacks=callbacks, max_steps=steps, max_epochs=-1, default_root_dir=scratch
        )
        trainer.fit(module, datamodule=data)


def loss_of(outputs: Any, trainer: L.Trainer) -> float:
    """Return the loss of a batch from the outputs of its training step.

    Args:
        outputs: Outputs of the step.
        trainer: The trainer, which divided the loss by the batches of a step.
    """
    return float(outputs["loss"] if isinstance(outputs, Mapping) else outputs) * trainer.accumulate_grad_batches


def _of_the_network(given: L.Callback | Sequence[L.Callback] | None, *, is_quiet: bool) -> list[L.Callback]:
    """Return the callbacks that change the network, and name the others.

    A backbone that a training thaws stays frozen, so that all steps train the same weights.
    """
    known = [given] if isinstance(given, L.Callback) else list(given or ())
    chosen: list[L.Callback] = []
    for callback in known:
        if isinstance(callback, FreezeBackbone):
            chosen.append(FreezeBackbone(stages=callback.stages, train_weights=callback.train_weights))
        elif isinstance(callback, _CHANGE_THE_NETWORK):
            chosen.append(callback)
        elif not is_quiet:
            print(f"{type(callback).__name__} does not act in these steps.", flush=True)
    return chosen
