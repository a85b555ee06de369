"""Read checkpoints that a command line names, and the configurations inside them."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml

from deeplab_lightning.commands.options import option, options
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.experiments.experiment import MACHINE_KEYS
from deeplab_lightning.module import CLASSES_KEY
from deeplab_lightning.usage import usage_error

START_FROM_WEIGHTS = (
    "To train from the weights that fit, give the file as --model.net.init_args.weights, without --ckpt_path."
)
"""What to do with a checkpoint of another network."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; its tensors stay in the file until they are used.

    Args:
        path: File that `deeplab fit` wrote.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a checkpoint of a training, or damaged.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"no such checkpoint: {Path(path).absolute()}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, UnpicklingError, EOFError) as error:
        # Their texts speak of archives and internal errors.
        raise UserError(f"{path} is no checkpoint of `deeplab fit`, or it was damaged or cut off.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of `deeplab fit`: it has no state_dict.")
    return checkpoint


def add_checkpoint_config(command: str, args: list[str], scratch: Path) -> list[str]:
    """Put the configuration of a checkpoint before the options, and for `predict` its class table after them.

    The configuration of a checkpoint is used unless a `-c` names a network.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        args: The options as typed.
        scratch: Temporary folder for the configuration files.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        SystemExit: With status 2, if the command needs a checkpoint and none is named.
    """
    path = option(args, "--ckpt_path")
    if any(word in {"-h", "--help"} or word.startswith("--help") for word in args):
        return args
    if path is None or path == "last":
        if command != "fit" and "--print_config" not in args:
            usage_error(f"{command} needs a checkpoint: --ckpt_path runs/<name>/checkpoints/best.ckpt")
        return args
    checkpoint = read_checkpoint(path)
    if not any(_names_network(config) for config in options(args, "-c", "--config")):
        config = _own_config(checkpoint, path, command)
        args = ["-c", _yaml_file(scratch / "checkpoint.yaml", config), *args]
    if command == "predict" and CLASSES_KEY in checkpoint:
        # The images are predicted without the data that the checkpoint was trained on, which may not exist here.
        no_data = {"dataset": None, "val_dataset": None, "test_dataset": None, "split": "folds", "fold": None}
        overlay = {"data": {**no_data, "classes": checkpoint[CLASSES_KEY]}}
        args = [*args, "-c", _yaml_file(scratch / "predict.yaml", overlay)]
    return args


def refuse_other_classes(path: str | Path, classes: ClassTable) -> None:
    """Refuse a checkpoint whose network has another number of classes than the data.

    Args:
        path: The checkpoint.
        classes: Class table of the data.

    Raises:
        ValueError: If the numbers differ, or it is no checkpoint.
    """
    names = read_checkpoint(path).get(CLASSES_KEY, {}).get("names", classes.names)
    if len(names) != classes.num_classes:
        found = f"{path} was trained on {len(names)} classes, but the data have {classes.num_classes}."
        raise UserError(f"{found} {START_FROM_WEIGHTS}")


def _own_config(checkpoint: dict[str, Any], path: str, command: str) -> dict[str, Any]:
    """Return the configuration that a checkpoint was trained with, as far as it applies to a command."""
    if "config" not in checkpoint:
        raise UserError(f"{path} holds no configuration; give the one that it was trained with by -c.")
    # Without its name: the run's folder may have been renamed since.
    config = {key: value for key, value in checkpoint["config"].items() if key not in {"ckpt_path", "name"}}
    if command != "fit":
        config["trainer"] = {key: value for key, value in config["trainer"].items() if key not in MACHINE_KEYS}
    return config


def _names_network(config: str) -> bool:
    """Check whether a configuration is complete without that of the checkpoint, because it names a network."""
    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8-sig"))
    except (OSError, yaml.YAMLError):
        return True  # it is given on the command line itself, which the parser reads
    return not isinstance(content, dict) or "net" in (content.get("model") or {})


def _yaml_file(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)
