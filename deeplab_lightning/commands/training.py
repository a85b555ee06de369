"""`deeplab fit | validate | test | predict` on LightningCLI."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from deeplab_lightning.class_paths import canonical
from deeplab_lightning.callbacks import EpochLines, PredictionWriter, RunRecord, SaveConfig
from deeplab_lightning.callbacks.checkpoint_io import AtomicCheckpointIO, RunCheckpoint
from deeplab_lightning.callbacks.epoch_seed import EpochSeed
from deeplab_lightning.callbacks.progress import NetworkLine
from deeplab_lightning.commands.options import option, options, usage_error
from deeplab_lightning.crf import DenseCRF  # noqa: F401, so that the command line knows the bare name
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.experiments.experiment import MACHINE_KEYS
from deeplab_lightning.models.saving import NO_PRETRAINED
from deeplab_lightning.module import CLASSES_KEY, SegmentationModule
from deeplab_lightning.runs import RunFolder, choose_run_folder
from deeplab_lightning.tracking.mode import WandbMode, choose_mode, is_wandb_logger
from deeplab_lightning.tracking.summary import WandbSummary

_SPLIT_KEYS = ("dataset", "split", "n_folds", "split_seed", "fold_method", "groups", "fold_file")
_CHECKPOINT_DEFAULTS = {
    "monitor": "val/miou",
    "mode": "max",
    "filename": "best",
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}


def run_training_command(command: str, args: list[str]) -> None:
    """Run one of Lightning's commands.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        args: Its options. The configuration is that of the checkpoint, which a `-c` that names no network
            overrides and any other replaces.
    """
    _quiet()
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch, _only_these_arguments():
        DeepLabCLI(command, _with_checkpoint(command, args, Path(scratch)))


def resolve_fit_config(args: list[str]) -> dict[str, Any]:
    """The complete configuration that `deeplab fit` would run with, without running it.

    Args:
        args: Options of `fit`.

    Raises:
        SystemExit: 2 for a wrong key or type.
    """
    _quiet()
    with _only_these_arguments():
        return _Resolver("fit", args).resolved


def load_checkpoint(args: list[str]) -> tuple[SegmentationModule, SegmentationDataModule, L.Trainer]:
    """Module with its trained weights, data and trainer of a checkpoint, without running anything.

    Args:
        args: Options of `validate`, `--ckpt_path` among them. The trainer's root folder is the run's.
    """
    _quiet()
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch, _only_these_arguments():
        loaded = _Loader("validate", _with_checkpoint("validate", args, Path(scratch)))
    path = loaded.config["validate"].ckpt_path
    loaded.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    return loaded.model, loaded.datamodule, loaded.trainer


class DeepLabCLI(LightningCLI):
    """LightningCLI with run folders, checkpoints that carry their configuration, and W&B modes.

    Args:
        command: The subcommand; only its parser is built.
        args: Its options.
    """

    def __init__(self, command: str, args: list[str]) -> None:
        self._command = command
        super().__init__(
            SegmentationModule,
            SegmentationDataModule,
            args=[command, *args],
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "deeplab"},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that runs: each costs half a second to describe."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Run folder, W&B, checkpoints; the data tell the model their classes."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run's folder; made from model and time if null.",
        )
        parser.add_argument("--output_dir", type=str, default="runs", help="Folder of the runs' folders.")
        parser.add_argument(
            "--wandb",
            type=WandbMode,
            default="offline",
            help="Where W&B logs to; online falls back to offline where the server cannot be reached.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{key}": value for key, value in _CHECKPOINT_DEFAULTS.items()})
        if self._command == "predict":
            parser.add_argument(
                "--images",
                type=list[str] | str | None,
                default=None,
                help="A folder, picture or .txt list to predict, or a list of them: '[a, b.jpg]'.",
            )
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="Folder of the predictions; in the run's folder if null.",
            )
        parser.link_arguments("data.num_classes", "model.net.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's configuration was given as the first `-c`, so that options override it."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder and write it into the arguments of trainer, checkpoints and logger."""
        config = self.config[self._command]
        self._check(config)
        folder = self._run_folder(config)
        config.name = folder.name
        self._keep_folds(config)
        self._config_text = self._parser(self._command).dump(config, skip_none=False)
        config.trainer.default_root_dir = str(folder)
        config.checkpoint.dirpath = str(folder.checkpoints)
        if not _will_validate(config):
            config.checkpoint.monitor, config.checkpoint.save_top_k = None, 0  # there is no best
        self._prepare_logger(config, folder)
        if config.ckpt_path is not None:
            net = config.model.net
            for key, value in NO_PRETRAINED.items():
                if key in net.get("init_args", {}):
                    net.init_args[key] = value
        callbacks: list[L.Callback] = [SaveConfig(self._config_text), RunRecord(config.seed_everything)]
        if self._command == "fit" and config.trainer.logger:
            callbacks.append(WandbSummary())
        if self._command == "fit" and config.trainer.enable_model_summary is not False:
            callbacks.append(NetworkLine())
            config.trainer.enable_model_summary = False
        if self._command == "fit":
            callbacks.append(EpochSeed(config.seed_everything if isinstance(config.seed_everything, int) else None))
            # Not save_last: that writes only when the best is written, and loses the epochs since.
            callbacks.append(
                RunCheckpoint(
                    dirpath=config.checkpoint.dirpath,
                    filename="last",
                    enable_version_counter=False,
                    save_on_train_epoch_end=True,
                )
            )
        if self._command in {"validate", "test"}:
            config.verbose = False  # RunRecord prints the table
        if self._command == "predict":
            config.return_predictions = False
            config.data.predict_images = config.images or config.data.predict_images
            callbacks.append(PredictionWriter(config.output))
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else EpochLines())
        self.trainer_defaults = {"callbacks": callbacks, "plugins": [AtomicCheckpointIO()]}

    def _check(self, config: Namespace) -> None:
        if config.trainer.default_root_dir is not None or config.checkpoint.dirpath is not None:
            usage_error("the run's folder is set by --output_dir and --name, not by trainer or checkpoint.")
        if config.model.net.get("init_args", Namespace()).get("num_classes") is not None:
            usage_error("model.net.init_args.num_classes comes from the data; leave it out.")

    def after_instantiate_classes(self) -> None:
        """Let checkpoints carry the configuration."""
        self.model.config = yaml.safe_load(self._config_text)
        if self._command == "fit":
            print(f"Run folder: {self.trainer.default_root_dir}", flush=True)

    def _keep_folds(self, config: Namespace) -> None:
        """Take the folds of the checkpoint's own run, unless the data or the split are others now.

        Else a picture that was added since would move others to other folds, and what was trained on
        would be validated on.
        """
        if config.ckpt_path is None or config.data.dataset is None:
            return
        own = RunFolder.of_checkpoint(config.ckpt_path)
        if own is None or config.data.split != "folds" or not own.folds.is_file():
            return
        now = yaml.safe_load(self._parser(self._command).dump(config, skip_none=False))["data"]
        then = own.read_config().get("data", {})
        if all(canonical(now[key]) == canonical(then.get(key)) for key in _SPLIT_KEYS):
            config.data.fold_file = str(own.folds)

    def _run_folder(self, config: Namespace) -> RunFolder:
        """Choose where this run writes, and settle what `ckpt_path: last` means."""
        if config.ckpt_path == "last" and not config.name:
            usage_error("ckpt_path: last needs the run's --name.")
        folder = choose_run_folder(
            name=config.name,
            output_dir=config.output_dir,
            checkpoint=config.ckpt_path,
            model=config.model.net.as_dict(),
            is_training=self._command == "fit",
        )
        if config.ckpt_path == "last":
            config.ckpt_path = str(folder.last) if folder.last.is_file() else None
        return folder

    def _prepare_logger(self, config: Namespace, folder: RunFolder) -> None:
        """One W&B run per training, in its folder. Validation, test and prediction are no runs of their own."""
        logger = config.trainer.logger
        mode = choose_mode(config.wandb) if self._command == "fit" else "disabled"
        loggers = logger if isinstance(logger, list) else [logger]
        is_wandb = [is_wandb_logger(entry) for entry in loggers]
        if self._command != "fit" or config.trainer.fast_dev_run:
            config.trainer.logger = False
            return
        if mode == "disabled":
            rest = [entry for entry, wandb in zip(loggers, is_wandb, strict=True) if not wandb and entry]
            config.trainer.logger = rest or False
            return
        for entry, wandb in zip(loggers, is_wandb, strict=True):
            if wandb:
                entry.init_args.save_dir = str(folder)
                entry.init_args.name = entry.init_args.get("name") or folder.name
                entry.init_args.offline = mode == "offline"


class _Loader(DeepLabCLI):
    """Builds all objects, and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


class _Resolver(DeepLabCLI):
    """Parses and checks a command line, and stops there."""

    def _set_seed(self) -> None:
        """Nothing."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self._command]
        self._check(config)
        self.resolved: dict[str, Any] = yaml.safe_load(self._parser(self._command).dump(config, skip_none=False))

    def instantiate_classes(self) -> None:
        """Nothing."""

    def after_instantiate_classes(self) -> None:
        """Nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def _with_checkpoint(command: str, args: list[str], scratch: Path) -> list[str]:
    """Put a checkpoint's own configuration before the options, and for predict its class table after them."""
    path = option(args, "--ckpt_path")
    if any(word in {"-h", "--help"} or word.startswith("--help") for word in args):
        return args
    if path is None or path == "last":
        if command != "fit" and "--print_config" not in args:
            usage_error(f"{command} needs a checkpoint: --ckpt_path runs/<name>/checkpoints/best.ckpt")
        return args
    if not Path(path).is_file():
        raise MissingFileError(f"no such checkpoint: {Path(path).absolute()}")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not any(_names_network(path) for path in options(args, "-c", "--config")):
        if "config" not in checkpoint:
            raise UserError(f"{path} holds no configuration; give the one it was trained with by -c.")
        # Without its name: the run's folder may have another by now.
        config = {key: value for key, value in checkpoint["config"].items() if key not in {"ckpt_path", "name"}}
        if command != "fit":
            config["trainer"] = {k: v for k, v in config["trainer"].items() if k not in MACHINE_KEYS}
        args = ["-c", _yaml_file(scratch / "checkpoint.yaml", config), *args]
    if command == "predict" and CLASSES_KEY in checkpoint:
        # The pictures stand alone: the data that the checkpoint was trained on need not be here.
        no_data = {"dataset": None, "val_dataset": None, "test_dataset": None, "split": "folds", "fold": None}
        overlay = {"data": {**no_data, "classes": checkpoint[CLASSES_KEY]}}
        args = [*args, "-c", _yaml_file(scratch / "predict.yaml", overlay)]
    return args


def _names_network(config: str) -> bool:
    """Whether a config can stand alone. What is no readable file is left to the parser to report."""
    try:
        content = yaml.safe_load(Path(config).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return True
    return not isinstance(content, dict) or "net" in (content.get("model") or {})


def _yaml_file(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def _will_validate(config: Namespace) -> bool:
    return config.data.split == "official" or config.data.fold is not None


@contextmanager
def _only_these_arguments() -> Iterator[None]:
    """Lightning warns when it is given arguments beside those of the process; here that is on purpose.

    Processes that it starts for DDP run the original command line again, so it is put back before training.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        yield


def _quiet() -> None:
    """Silence hints that do not apply."""
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*It is recommended to use .self.log.*sync_dist=True.*",
        ".*The .srun. command is available.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*anonymous setting has no effect.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Be aware that when using .ckpt_path..*",
        ".*Trying to infer the .batch_size.*",
    ):
        warnings.filterwarnings("ignore", message=message)
