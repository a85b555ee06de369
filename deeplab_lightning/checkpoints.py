"""Describe a module in its checkpoints, and rebuild its arguments from them."""

import errno
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from deeplab_lightning.class_paths import TRUSTED_PACKAGES, class_path_of, foreign_class, import_error, init_args_of
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.fold_split import SPLIT_KEYS
from deeplab_lightning.data.transforms import EvalTransforms
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.losses import known_weights
from deeplab_lightning.models.saving import (
    NO_PRETRAINED,
    describe_use,
    uncompiled,
    unknown_arguments,
)
from deeplab_lightning.module_arguments import (
    TRAINING_PARTS,
    arguments_of,
    build_arguments,
    owners_of,
    refusal_to_train,
    required_arguments,
)
from deeplab_lightning.module_arguments import MissingLoss as MissingLoss  # its place in earlier checkpoints

CLASSES_KEY = "classes"
"""Key of the class table in a checkpoint, as plain lists."""
CLASS_WEIGHTS_KEY = "class_weights"
"""Key of the class weights that were measured on the training images, see `losses.known_weights`."""
NETWORK_KEY = "network"
"""Key of the network's class, of the preprocessing of its images and of what a checkpoint names but does not hold."""
_ARGUMENTS_KEY = "hyper_parameters"  # Lightning's
_PARTS = ("loss", *TRAINING_PARTS, "postprocess")


def read_checkpoint(path: str | Path, *, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint to the CPU; its tensors stay in the file until they are used.

    Args:
        path: File that a training wrote.
        weights_only: Unpickle nothing but tensors and plain values.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a checkpoint of a training, or damaged.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"no such checkpoint: {Path(path).absolute()}")
    _check_archive(Path(path))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except (RuntimeError, ValueError, UnpicklingError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that of a file that is shorter than it says
            raise
        # Their texts speak of archives and internal errors.
        raise UserError(f"{path} is no checkpoint of `deeplab fit`, or it was damaged or cut off.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of `deeplab fit`: it has no state_dict.")
    return checkpoint


def _check_archive(path: Path) -> None:
    """Compare the checksums in a checkpoint's archive with its content, which torch does not do.

    Raises:
        UserError: If it was changed, or would unpack to more than its size.
    """
    try:
        if not zipfile.is_zipfile(path):
            return  # an older format, or no checkpoint: torch says which
        with zipfile.ZipFile(path) as archive:
            packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            damaged = None if packed else archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}). Take another checkpoint of the run.") from error
    if packed:
        raise UserError(f"{path} is no checkpoint of `deeplab fit`: its content is compressed.")
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong. Take another checkpoint of the run.")


def describe(module: Any, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Describe a module as plain values, from which `saved_arguments` rebuilds its arguments.

    Args:
        module: A `SegmentationModule`.
        config: Its configuration if the command line built it. Without it, the objects themselves are described.
    """
    net, classes = uncompiled(module.net), module.classes.to_dict()
    network = {"class_path": class_path_of(net), "unknown_arguments": unknown_arguments(net), **describe_use(net)}
    content: dict[str, Any] = {
        CLASSES_KEY: classes,
        NETWORK_KEY: network,
        CLASS_WEIGHTS_KEY: known_weights(module.loss),
    }
    if config is None:
        arguments = arguments_of(module)
        factories = {"optimizer": module.optimizer_factory, "lr_scheduler": module.scheduler_factory}
        for name, part in {"postprocess": module.postprocess, **factories}.items():
            if part is not None and name not in arguments:
                network[name] = class_path_of(part)
    else:
        content["config"] = config
        arguments = {**config["model"], "net": _with_all_arguments(config["model"]["net"], net)}
    arguments |= {"classes": classes, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    return {**content, "hparams_name": "kwargs", _ARGUMENTS_KEY: arguments}


def saved_arguments(
    kind: type, path: Any, given: Iterable[str], *, weights_only: bool | None, trust: bool = False
) -> dict[str, Any]:
    """Rebuild the arguments of a module from its checkpoint.

    A loss, an optimiser or a schedule that the checkpoint does not hold, or that cannot be imported, is replaced by one
    that refuses to train.

    Args:
        kind: `SegmentationModule` or a subclass.
        path: Path of the checkpoint.
        given: Names of the arguments that the caller gives, which are not rebuilt.
        weights_only: Unpickle nothing but tensors and plain values; true if None.
        trust: Import classes of any package; otherwise of `TRUSTED_PACKAGES` alone.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the network or the postprocess is not given and cannot be rebuilt.
    """
    checkpoint = read_checkpoint(path, weights_only=weights_only is not False)
    saved = checkpoint.get(_ARGUMENTS_KEY, {})
    if "net" not in given and (problem := network_problem(checkpoint, trust=trust)):
        raise UserError(f"{path} {problem}. Or give it by load_from_checkpoint(path, net=...).")
    if "_instantiator" not in saved:
        return {}  # without it, the values are the arguments themselves
    arguments: dict[str, Any] = {"_instantiator": None}
    buildable, owners = {}, owners_of(kind)
    for name in TRAINING_PARTS:
        if (lost := checkpoint.get(NETWORK_KEY, {}).get(name)) and name in owners:
            arguments[name] = refusal_to_train(f"{path} does not hold its {name} {lost}")
    for name in owners:
        if name not in saved or name in given:
            continue
        value = saved[name]
        is_path = isinstance(value, str) and name in _PARTS  # of a function
        entry = {"class_path": value} if is_path else value
        failure = None if name == "net" else import_problem(entry, trust=trust)
        text = f"{name} of {path} is not available, since {failure}"
        if not failure:
            buildable[name] = value
        elif name == "loss":
            arguments[name] = MissingLoss(text)
        elif name in TRAINING_PARTS:
            arguments[name] = refusal_to_train(text)
        else:
            raise UserError(f"{text}. Give it by load_from_checkpoint(path, {name}=...).")
    for name, text in gaps(checkpoint).items():
        if name not in given:
            warnings.warn(f"{path} {text}.", stacklevel=3)
    arguments |= build_arguments(path, buildable, owners)
    _report_missing(kind, path, {*arguments, *given, *saved})
    return arguments


def _report_missing(kind: type, path: Any, known: set[str]) -> None:
    """Warn of the arguments of a subclass that a checkpoint does not hold, and stop at those without a default.

    Raises:
        UserError: If a value is missing without which the module cannot be built.
    """
    required = required_arguments(kind)
    for name, owner in owners_of(kind).items():
        if name in known or owner.__module__.startswith("deeplab_lightning."):
            continue
        text = f"{path} does not hold the argument {name} of {kind.__name__}"
        if name in required:
            raise UserError(
                f"{text}: give it by load_from_checkpoint(path, {name}=...), or keep it in an attribute of this name."
            )
        warnings.warn(
            f"{text}, which has its default now: give it, or keep it in an attribute of this name.", stacklevel=4
        )


def saved_use(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what images went through before the network of a checkpoint, see `describe_use`.

    Checkpoints of version 0.1.0 have the evaluation size in their configuration.
    """
    if NETWORK_KEY in checkpoint:
        return dict(checkpoint[NETWORK_KEY])
    transforms = checkpoint.get("config", {}).get("data", {}).get("eval_transforms")
    for init_args in init_args_of(EvalTransforms.__name__, transforms):
        return {"max_size": init_args.get("max_size")}
    return {}


def import_problem(entry: Any, *, trust: bool, owner: type | None = None) -> str | None:
    """Return which class of a checkpoint cannot or must not be imported, and why, as a clause; None if all can.

    Args:
        entry: Part of the configuration.
        trust: Whether classes of any package may be imported.
        owner: Class whose arguments the entry holds, if it names none.
    """
    if not trust and (foreign := foreign_class(entry, owner)):
        packages = ", ".join(TRUSTED_PACKAGES)
        return f"{foreign} is no class of {packages}: if you trust it, use --trust, in Python trust=True"
    return import_error(entry)


def network_problem(checkpoint: Mapping[str, Any], *, trust: bool) -> str | None:
    """Return why the network of a checkpoint cannot be rebuilt, as the end of a sentence; None if it can.

    Args:
        checkpoint: Content of the checkpoint.
        trust: Whether classes of any package may be imported.
    """
    saved, network = checkpoint.get(_ARGUMENTS_KEY, {}), checkpoint.get(NETWORK_KEY)
    if "net" in saved:
        failure = import_problem(saved["net"], trust=trust)
        return failure and f"has a network that cannot be built, since {failure}"
    if network is None:
        return "does not describe its network"
    unknown = ", ".join(network["unknown_arguments"])
    return f"does not hold the arguments {unknown} of its network {network['class_path']}, which are no plain values"


def gaps(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return what a checkpoint from Python names but does not hold, as the end of a sentence for each argument.

    Args:
        checkpoint: Content of the checkpoint.
    """
    network = checkpoint.get(NETWORK_KEY, {})
    texts = {
        "eval_transforms": "was evaluated with {}, which images have to go through first",
        "postprocess": "does not hold its postprocess {}: labels are the network's",
    }
    return {key: text.format(network[key]) for key, text in texts.items() if network.get(key)}


def saved_split(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fold that a checkpoint held out and the settings of its split; empty without folds.

    Args:
        checkpoint: Content of the checkpoint.
    """
    state = checkpoint.get(SegmentationDataModule.__qualname__, {})  # where Lightning keeps the datamodule's state
    return {key: state[key] for key in SPLIT_KEYS if key in state}


def saved_digest(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the digest of the data that a checkpoint was trained on; None if it holds none.

    Args:
        checkpoint: Content of the checkpoint.
    """
    return (checkpoint.get(SegmentationDataModule.__qualname__) or {}).get("data_digest")


def _with_all_arguments(entry: Mapping[str, Any], net: Any) -> dict[str, Any]:
    """Complete the entry of a network in a configuration by what the data decide, without pretrained weights."""
    arguments = {**entry.get("init_args", {}), "num_classes": net.num_classes}
    if net.in_channels != 3:
        arguments["in_channels"] = net.in_channels
    arguments |= {key: value for key, value in NO_PRETRAINED.items() if key in arguments}
    return {**entry, "init_args": arguments}
