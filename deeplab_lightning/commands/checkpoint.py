"""Use the configuration of the checkpoint that a command line names."""

import inspect
import json
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from deeplab_lightning.checkpoints import (
    CLASSES_KEY,
    gaps,
    import_problem,
    network_problem,
    read_checkpoint,
    saved_split,
    saved_use,
)
from deeplab_lightning.class_paths import class_path_of
from deeplab_lightning.commands.options import option, options
from deeplab_lightning.data.classes import ClassTable, moved_class
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.fold_split import MAYBE_TRAINED
from deeplab_lightning.data.transforms import EvalTransforms
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.files import unused_path
from deeplab_lightning.inference.exported import ExportedFile, ExportedNet, is_exported, read_exported, trust_file
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.module_arguments import MissingLoss
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.usage import usage_error

START_FROM_WEIGHTS = (
    "To train from the weights that fit, give the file as --model.net.init_args.weights, without --ckpt_path."
)
"""What to do with a checkpoint of another network."""
_DATA_SETS = ("dataset", "val_dataset", "test_dataset", "groups")
# What an evaluation takes from the configuration of a checkpoint, besides network and data. All of it is plain values.
_OF_EVALUATION = ("seed_everything", "wandb")
_OF_TRAINER = ("precision", "deterministic", "limit_val_batches", "limit_test_batches", "limit_predict_batches")
_OF_TRAINING = ("optimizer", "lr_scheduler")


def add_checkpoint_config(command: str, args: list[str], scratch: Path) -> list[str]:
    """Put the configuration of a checkpoint before the options, and for `predict` its class table after them.

    The configuration of a checkpoint is used unless a `-c` names a network: all of it by `fit`, which continues the
    training; by the other commands, what rebuilds network, data and evaluation, from packages that are trusted unless
    `--trust` is given. `test` of a `data.test_dataset` that the options name uses the class table instead of the data
    of the training, which may not exist here.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        args: The options as typed.
        scratch: Temporary folder for the configuration files.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        SystemExit: With status 2, if the command needs a checkpoint and none is named.
    """
    path = option(args, "--ckpt_path") or (None if command == "fit" else _configured_checkpoint(args))
    if any(word in {"-h", "--help"} or word.startswith("--help") for word in args):
        return args
    if path is None or path == "last":
        if command != "fit" and "--print_config" not in args:
            usage_error(f"{command} needs a checkpoint: --ckpt_path runs/<name>/checkpoints/best.ckpt")
        return args
    if is_exported(path):
        return _add_exported_config(command, args, path, scratch)
    checkpoint = read_checkpoint(path)
    if not any(_names_network(config) for config in options(args, "-c", "--config")):
        config = _own_config(checkpoint, path, command, trust="--trust" in args)
        if command == "test" and any(word.startswith("--data.test_dataset") for word in args):
            config["data"] = {**config.get("data", {}), **_without_data(checkpoint)}
        args = ["-c", _yaml_file(scratch / "checkpoint.yaml", config), *args]
    if command == "predict" and CLASSES_KEY in checkpoint:
        overlay = {"data": {**_without_data(checkpoint), "test_dataset": None}}
        args = [*args, "-c", _yaml_file(scratch / "predict.yaml", overlay)]
    return args


def _add_exported_config(command: str, args: list[str], path: str, scratch: Path) -> list[str]:
    """Put the configuration of an exported file after the options, as the network without a checkpoint.

    The run's folder has the name of the file unless the options name it.
    """
    if command == "fit":
        raise UserError(f"{path} was exported and cannot be trained further; give a checkpoint.")
    if "--trust" in args:
        trust_file(path)
    exported = read_exported(path)
    if command != "predict" and exported.returns_labels:
        raise UserError(
            f"{path} returns labels, which have no loss and no calibration; export it without --argmax to {command} it."
        )
    network = {"class_path": class_path_of(ExportedNet), "init_args": {"file": str(exported.path)}}
    transforms = {"class_path": class_path_of(EvalTransforms), "init_args": {"max_size": exported.max_size}}
    data: dict[str, Any] = {"eval_transforms": transforms}
    if (image_format := exported.value("image_format")) is not None:
        data["image_format"] = image_format
    classes = {CLASSES_KEY: exported.classes.to_dict()}
    args = ["-c", _yaml_file(scratch / "name.yaml", {"name": exported.path.stem}), *args]
    if command == "test" and any(word.startswith("--data.test_dataset") for word in args):
        args = ["-c", _yaml_file(scratch / "data.yaml", {"data": _without_data(classes)}), *args]
    if command != "predict":
        data |= _held_out(exported, args)
    else:
        data |= {**_without_data(classes), "test_dataset": None}
    overlay = {"model": {"net": network}, "data": data, "ckpt_path": None}
    return [*args, "-c", _yaml_file(scratch / "exported.yaml", overlay)]


def _held_out(exported: ExportedFile, args: list[str]) -> dict[str, Any]:
    """Return the settings of the fold that an exported network held out, except for those that are typed.

    They replace those of a `-c`, which has to give the data and may be that of all folds.
    """
    split = exported.split or {}
    if split.get("fold") is None:
        return {}
    return {key: value for key, value in split.items() if option(args, f"--data.{key}") is None}


def say_what_was_held_out(command: str, exported: ExportedFile, data: SegmentationDataModule) -> None:
    """Say which fold is validated, or warn where images may be evaluated that an exported network was trained on.

    Args:
        command: `validate` or `test`.
        exported: The file.
        data: The data that it is evaluated on.
    """
    name, split = exported.path.name, exported.split
    if data.dataset is None or data.split != "folds" or (command == "test" and data.test_dataset is not None):
        return
    if split is None:
        rank_zero_warn(f"{name} does not say which fold it held out; export it again. {MAYBE_TRAINED}")
    elif any(getattr(data, key) != value for key, value in split.items()):
        own = (
            f"held out fold {split['fold']} of {split['n_folds']}" if split["fold"] is not None else "held out no fold"
        )
        rank_zero_warn(f"{name} {own}; another fold or split is asked for. {MAYBE_TRAINED}")
    elif split:
        rank_zero_info(f"{name} held out fold {data.fold} of {data.n_folds}, which is evaluated.")


def _configured_checkpoint(args: list[str]) -> str | None:
    """Return the checkpoint that a `-c` names, such as that of `deeplab best`; None if none does."""
    contents = (_content(config) for config in reversed(options(args, "-c", "--config")))
    paths = (content.get("ckpt_path") for content in contents if isinstance(content, dict))
    return next((path for path in paths if isinstance(path, str)), None)


def expand_experiment(command: str, args: list[str]) -> list[str]:
    """Replace `--experiment FOLDER` of `test` and `predict` by the best checkpoints of its folds and seeds.

    Args:
        command: The command.
        args: The options as typed.

    Raises:
        FileNotFoundError: If the experiment has no finished fold.
        SystemExit: With status 2, if a checkpoint is named besides.
    """
    folder = option(args, "--experiment") if command in {"test", "predict"} else None
    if folder is None:
        return args
    if option(args, "--ckpt_path") is not None or option(args, "--ensemble") is not None:
        usage_error("--experiment names all checkpoints; leave --ckpt_path and --ensemble out.")
    files = ExperimentFolder(folder)
    runs = [run for part in (files.seeds() or [files]) for run in part.runs()]
    found = [str(run.best) for run in runs if run.result.is_file() and run.best.is_file()]
    if not found:
        raise MissingFileError(f"no finished fold with a best.ckpt in {files.path.absolute()}.")
    if missing := [str(name) for part in (files.seeds() or [files]) for name in _without_checkpoint(part)]:
        print(f"Note: of {len(found) + len(missing)} networks, these have no finished training: {', '.join(missing)}.")
    rest, words = [], iter(args)
    for word in words:
        if word == "--experiment":
            next(words)
        elif not word.startswith("--experiment="):
            rest.append(word)
    own = ["--ckpt_path", found[0], "--ensemble", json.dumps(found[1:])]
    if command == "predict" and option(args, "--output") is None:
        own += ["--output", str(unused_path(files.path / "predictions"))]
    return [*own, *rest]


def _without_checkpoint(files: ExperimentFolder) -> list[Path]:
    """Return the folders of the folds of an experiment that have no finished training, trained or not."""
    if not files.config.is_file():
        return []
    count = (files.read_config().get("data") or {}).get("n_folds") or 0
    runs = [files.fold(fold) for fold in range(count)]
    return [run.path for run in runs if not (run.result.is_file() and run.best.is_file())]


def _without_data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `data` that replace the data of the training by its class table."""
    no_data = {"dataset": None, "val_dataset": None, "split": "folds", "fold": None, "fold_file": None, "groups": None}
    return {**no_data, "classes": checkpoint.get(CLASSES_KEY)}


def refuse_other_classes(path: str | Path, classes: ClassTable, *, goes_on: bool) -> None:
    """Refuse a network of other classes than those of the data, or of the same in another order.

    Other names of the same number of classes are only warned of, since a data set may call them otherwise.

    Args:
        path: The checkpoint, or a file of `deeplab export`.
        classes: Class table of the data.
        goes_on: Whether its training goes on, whose figures so far are of its own classes.

    Raises:
        ValueError: If the number or the order differs, or it is no checkpoint.
    """
    trained: list[str] = list(
        read_exported(path).classes.names
        if is_exported(path)
        else read_checkpoint(path).get(CLASSES_KEY, {}).get("names", classes.names)
    )
    if len(trained) != classes.num_classes:
        found = f"{path} was trained on {len(trained)} classes, but the data have {classes.num_classes}."
        raise UserError(f"{found} {START_FROM_WEIGHTS}")
    if moved := moved_class(trained, classes.names):
        raise UserError(
            f"{path} was trained on other indices: {moved}. Give the data's classes in the order of the training, "
            f"[{', '.join(trained)}]."
        )
    if renamed := [f"{a} is called {b}" for a, b in zip(trained, classes.names, strict=True) if a != b]:
        if goes_on:
            raise UserError(
                f"{path} was trained on classes of other names: {renamed[0]} in the data. Go on with the names of the "
                f"training, [{', '.join(trained)}]; data that are evaluated later may have others."
            )
        rank_zero_warn(f"{path} was trained on classes of other names: {', '.join(renamed)} in the data.")


def _own_config(checkpoint: dict[str, Any], path: str, command: str, *, trust: bool) -> dict[str, Any]:
    """Return the configuration that a checkpoint was trained with, as far as it applies to a command."""
    if "config" not in checkpoint and command != "fit":
        return _config_from_python(checkpoint, path, trust=trust)
    if "config" not in checkpoint:
        raise UserError(f"{path} holds no configuration; give the one that it was trained with by -c.")
    # Without its name: the run's folder may have been renamed since.
    config = {key: value for key, value in checkpoint["config"].items() if key not in {"ckpt_path", "name"}}
    return config if command == "fit" else _of_evaluation(config, path, command, trust=trust)


def _of_evaluation(config: dict[str, Any], path: str, command: str, *, trust: bool) -> dict[str, Any]:
    """Return what an evaluation needs, without data sets that cannot be imported here, which options may replace."""
    is_mapping = isinstance(config, dict) and all(isinstance(config.get(key), dict) for key in ("model", "data"))
    if not is_mapping or not isinstance(config["model"].get("net"), dict):
        raise UserError(f"{path} holds no configuration of `deeplab fit`; give the one that it was trained with by -c.")
    model = _model(config["model"], path, trust=trust)
    left_out = {"train_transforms", "copy_paste", "extra_datasets", *(_DATA_SETS if command == "predict" else ())}
    data = {key: value for key, value in config["data"].items() if key not in left_out}
    data |= {key: _usable(data[key], trust=trust) for key in _DATA_SETS if key in data}
    if problem := import_problem(data, trust=trust, owner=SegmentationDataModule):
        raise UserError(f"{path} cannot be evaluated, since {problem}.")
    trainer = config.get("trainer") or {}
    kept = {key: trainer[key] for key in _OF_TRAINER if isinstance(trainer.get(key), str | int | float)}
    own = {key: config[key] for key in _OF_EVALUATION if isinstance(config.get(key), str | int)}
    return {**own, "model": model, "data": data, "trainer": kept}


def _model(config: dict[str, Any], path: str, *, trust: bool) -> dict[str, Any]:
    """Return the configuration of a module without what only a training needs.

    Raises:
        ValueError: If the network or the postprocess cannot be imported; a loss is replaced.
    """
    model = {key: value for key, value in config.items() if key not in _OF_TRAINING}
    if failure := import_problem(model.get("loss"), trust=trust):
        reason = f"the loss of {path} is not available, since {failure}"
        model["loss"] = {"class_path": f"{MissingLoss.__module__}.MissingLoss", "init_args": {"reason": reason}}
    if problem := import_problem(model, trust=trust):
        raise UserError(f"{path} cannot be evaluated, since {problem}.")
    return model


def _usable(setting: Any, *, trust: bool) -> Any:
    """Return a setting, or None if its class cannot be imported, and name that."""
    failure = import_problem(setting, trust=trust) if isinstance(setting, dict) else None
    if failure:
        print(f"Left out: {failure}.", flush=True)
    return None if failure else setting


def _config_from_python(checkpoint: dict[str, Any], path: str, *, trust: bool) -> dict[str, Any]:
    """Return a configuration for a checkpoint that a `Trainer` wrote without the command line."""
    if problem := network_problem(checkpoint, trust=trust):
        raise UserError(f"{path} {problem}. Or give its configuration by -c.")
    saved, names = checkpoint["hyper_parameters"], inspect.signature(SegmentationModule).parameters
    kept = {key: value for key, value in saved.items() if key in names and key != "classes"}
    model = _model(kept, path, trust=trust)
    of_net = {
        key: value for key, value in model["net"]["init_args"].items() if key not in {"num_classes", "in_channels"}
    }
    for text in gaps(checkpoint).values():
        print(f"Note: {path} {text}.", flush=True)
    use = {"max_size": saved_use(checkpoint).get("max_size")}
    data: dict[str, Any] = {
        "eval_transforms": {"class_path": f"{EvalTransforms.__module__}.EvalTransforms", "init_args": use}
    }
    if image_format := saved_use(checkpoint).get("image_format"):
        data["image_format"] = image_format
    data |= saved_split(checkpoint)
    return {"model": {**model, "net": {**model["net"], "init_args": of_net}}, "data": data}


def _names_network(config: str) -> bool:
    """Check whether a configuration is complete without that of the checkpoint, because it names a network."""
    content = _content(config)  # None if it is given on the command line itself, which the parser reads
    return not isinstance(content, dict) or "net" in (content.get("model") or {})


def _content(config: str) -> Any:
    """Return the content of a configuration file; None if there is no such file, or it is no YAML."""
    try:
        return yaml.safe_load(Path(config).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _yaml_file(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)
