"""Save a LightningModule so that its checkpoints can be used alone."""

from pathlib import Path
from typing import Any, Self

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from deeplab_lightning.checkpoints import (
    CLASS_WEIGHTS_KEY,
    describe,
    saved_arguments,
    saved_use,
)
from deeplab_lightning.class_paths import class_path_of
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.transforms import EvalTransforms
from deeplab_lightning.losses import ClassPixels, measure_weights, needs_pixels, set_weights
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.models.saving import normalize_by, restore_use, uncompiled
from deeplab_lightning.module_arguments import MissingLoss

_COMPILED = "_orig_mod."  # what `torch.compile` adds to the names of weights


class SavedModule(L.LightningModule):
    """Store in each checkpoint what the module is rebuilt from: network, classes and preprocessing.

    It is the base of `SegmentationModule`, which defines the network and the other parts.
    """

    net: DeepLab
    loss: nn.Module
    trains_loss = True
    """Whether parameters of the loss are trained."""
    config: dict[str, Any] | None = None
    """The resolved configuration, set by the command line and stored in checkpoints."""

    def setup(self, stage: str) -> None:
        """Adopt the evaluation size of the data; in training, also the format of its images and its class weights."""
        if self._eval_transforms is not None:
            follow(self.net, self._eval_transforms)
        data = getattr(self._trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, SegmentationDataModule):
            self._adopt_format(data)
            self._measure_weights(data)

    def _adopt_format(self, data: SegmentationDataModule) -> None:
        """Normalise images as the data module says, and remember the format of its files."""
        net = uncompiled(self.net)
        if statistics := data.channel_statistics():
            normalize_by(net, *statistics)
        net.preprocess.image_format = None if data.image_format.is_plain else data.image_format.to_dict()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the module's arguments as plain values, without weights to start from."""
        content = describe(self, self.config)
        content["hyper_parameters"] = {**checkpoint.get("hyper_parameters", {}), **content["hyper_parameters"]}
        checkpoint |= content

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Prepare images as in the training of the checkpoint, except for what the trainer's data say."""
        restore(self, checkpoint, has_transforms=self._eval_transforms is not None)
        groups = [group for state in checkpoint.get("optimizer_states", []) for group in state.get("param_groups", [])]
        goes_on = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        of_loss = any(parameter.requires_grad for parameter in self.loss.parameters())
        if goes_on and of_loss and groups and "loss" not in {group.get("name") for group in groups}:
            self.trains_loss = False
            rank_zero_warn("the checkpoint's training did not train the parameters of its loss, and goes on without.")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trust: bool = False,
        **arguments: Any,
    ) -> Self:
        """Load a module from a checkpoint that `deeplab fit` or a `Trainer` wrote.

        What only a training needs, the loss and the optimiser, may be missing on this machine.

        Args:
            checkpoint_path: The checkpoint.
            map_location: Device of the weights; that of the training if None.
            hparams_file: See Lightning.
            strict: See Lightning.
            weights_only: See Lightning.
            trust: Import the classes that the checkpoint names from any package. Without it, only from this one,
                torch, torchvision, timm, segmentation_models_pytorch and lightning: importing a module runs its code.
            arguments: Arguments of the class that replace those of the checkpoint, such as `loss`.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If it is damaged, or an argument that is not given cannot be rebuilt from it.
        """
        is_local = isinstance(checkpoint_path, str | Path) and "://" not in str(checkpoint_path)
        if is_local and hparams_file is None:
            saved = saved_arguments(
                cls, checkpoint_path, arguments, weights_only=weights_only is not False, trust=trust
            )
            arguments = {**saved, **arguments}
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only, **arguments
        )

    def _measure_weights(self, data: SegmentationDataModule) -> None:
        """Apply the rules of the class weights to the training images, and print the weights."""
        if not needs_pixels(self.loss):
            return
        names = data.classes.names
        for rule, weights in measure_weights(self.loss, ClassPixels(*data.class_pixels())).items():
            of_class = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True))
            rank_zero_info(f"Class weights ({rule}, of the training images): {of_class}.")

    @property
    def _eval_transforms(self) -> object | None:
        """Return the evaluation transforms of the trainer's datamodule, if there are any."""
        return getattr(getattr(self._trainer, "datamodule", None), "eval_transforms", None)


def follow(net: nn.Module, eval_transforms: object) -> None:
    """Let a network prepare images as the evaluation transforms of a datamodule do.

    Args:
        net: Network that is changed.
        eval_transforms: The transforms. Of others than `EvalTransforms` only the class path is kept, for a warning.
    """
    preprocess = uncompiled(net).preprocess
    is_own = type(eval_transforms) is EvalTransforms
    preprocess.max_size = eval_transforms.max_size if is_own else None  # type: ignore[attr-defined]
    preprocess.transforms = None if is_own else class_path_of(eval_transforms)


def restore(module: SavedModule, checkpoint: dict[str, Any], *, has_transforms: bool) -> None:
    """Prepare a module for the weights of a checkpoint, and these for the module.

    Args:
        module: A `SegmentationModule`, which is changed.
        checkpoint: Content of the checkpoint, whose `state_dict` is changed.
        has_transforms: Whether a datamodule has evaluation transforms, which are used instead of the checkpoint's.
    """
    net, saved = uncompiled(module.net), saved_use(checkpoint)
    if has_transforms:
        saved |= {"max_size": net.preprocess.max_size, "eval_transforms": net.preprocess.transforms}
    restore_use(net, saved)
    set_weights(module.loss, checkpoint.get(CLASS_WEIGHTS_KEY, {}))
    own = {key.replace(_COMPILED, ""): key for key in module.state_dict()}
    state = {own.get(key.replace(_COMPILED, ""), key): value for key, value in checkpoint["state_dict"].items()}
    if isinstance(module.loss, MissingLoss):
        state = {key: value for key, value in state.items() if not key.startswith("loss.")}
    checkpoint["state_dict"] = state
