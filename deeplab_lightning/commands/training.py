"""Run `deeplab fit`, `validate`, `test` and `predict` with LightningCLI."""

import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
import yaml
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint
from deeplab_lightning.callbacks.sigterm import StopOnSigterm
from deeplab_lightning.checkpoints import read_checkpoint
from deeplab_lightning.class_paths import class_path_of
from deeplab_lightning.commands.checkpoint import (
    START_FROM_WEIGHTS,
    add_checkpoint_config,
    expand_experiment,
    refuse_other_classes,
)
from deeplab_lightning.commands.option_values import check_values
from deeplab_lightning.commands.options import check_configs
from deeplab_lightning.commands.parsers import TRUST_HELP
from deeplab_lightning.commands.run_settings import (
    build_callbacks,
    choose_folder,
    keep_folds,
    refuse_contradictions,
    set_command_options,
    set_folder,
    set_logger,
    set_plugins,
    skip_pretrained_weights,
)
from deeplab_lightning.crf import DenseCRF  # noqa: F401, so that the command line knows the bare name
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.images import LARGE_PIXELS
from deeplab_lightning.errors import UserError, raised_in
from deeplab_lightning.files import remove_if_empty, remove_leftovers
from deeplab_lightning.inference.regions import RegionFilter
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RUN_FOLDER_VARIABLE, ExperimentFolder, RunFolder
from deeplab_lightning.saved_module import follow
from deeplab_lightning.schedules import PolyLR
from deeplab_lightning.tracking.mode import WandbMode
from deeplab_lightning.usage import OneLineUsage

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
        args: Its options. The configuration of the checkpoint comes first: a `-c` that names a network replaces it,
            any other overrides it.

    Raises:
        FileNotFoundError: If a configuration file or the checkpoint does not exist.
        ValueError: If an option has a value that cannot be used here, such as a GPU on a machine without one.
        SystemExit: With status 2, if a key or a type is wrong; with 143, after SIGTERM.
    """
    args = expand_experiment(command, args)
    with _surroundings(args) as scratch, _no_empty_folder():
        cli = DeepLabCLI(command, add_checkpoint_config(command, args, scratch))
        cli.run()
        if command == "fit" and cli.trainer.is_global_zero:
            _pool_again(RunFolder(cli.trainer.default_root_dir))


def _pool_again(run: RunFolder) -> None:
    """Write the pooled result and the page of the experiment again whose fold was trained further."""
    if not ExperimentFolder(run.path.parent).result.is_file() or not run.result.is_file():
        return
    from deeplab_lightning.experiments.aggregate import aggregate  # no other training needs them
    from deeplab_lightning.experiments.page import write_page

    try:
        aggregate(run.path.parent)
        write_page(run.path.parent)
    except (UserError, OSError) as error:  # the training itself has ended well
        print(f"the pooled result of {run.path.parent} was not written again: {error}", file=sys.stderr)


def resolve_fit_config(args: list[str]) -> dict[str, Any]:
    """Return the complete configuration that `deeplab fit` would run with, without running it.

    Args:
        args: Options of `fit`.

    Raises:
        FileNotFoundError: If a configuration file does not exist.
        SystemExit: With status 2, if a key or a type is wrong.
    """
    with _surroundings(args):
        return _Resolver("fit", args).resolved


def try_to_build(args: list[str]) -> None:
    """Build all that `deeplab fit` would train with, and leave nothing behind.

    Weights that cannot be had, a wrong option, or a loss that cannot be built stop here, before any training.

    Args:
        args: Options of `fit`.

    Raises:
        UserError: If a part cannot be built.
        SystemExit: With status 2, if a key or a type is wrong.
    """
    trial = ["--name", "trial", "--ckpt_path", "null", "--wandb", "disabled", "--trainer.logger", "false"]
    with _surroundings(args) as scratch, _environment_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainings give them
        logging.disable(logging.INFO)
        try:
            cli = DeepLabCLI("fit", [*args, *trial, "--output_dir", str(scratch)])
            with user_mistakes(TypeError, ValueError):  # of the optimiser, whose arguments are the user's
                cli.model.build_optimizer()
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Restore the environment variables that a training leaves to its processes."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def load_checkpoint(args: list[str]) -> tuple[SegmentationModule, SegmentationDataModule, L.Trainer]:
    """Build the module with its trained weights, the data and the trainer of a checkpoint, without running anything.

    Args:
        args: Options of `validate`, with `--ckpt_path` among them. The trainer's root folder is the run's folder.

    Raises:
        FileNotFoundError: If a configuration file or the checkpoint does not exist.
    """
    with _surroundings(args) as scratch:
        cli = DeepLabCLI("validate", add_checkpoint_config("validate", args, scratch))
    checkpoint = read_checkpoint(cli.config["validate"].ckpt_path)
    cli.model.on_load_checkpoint(checkpoint)
    cli.model.load_state_dict(checkpoint["state_dict"])
    follow(cli.model.net, cli.datamodule.eval_transforms)
    return cli.model, cli.datamodule, cli.trainer


def build_fit(args: list[str]) -> tuple[SegmentationModule, SegmentationDataModule, dict[str, Any]]:
    """Build the module and the data of a training, without running it.

    Args:
        args: Options of `fit`.

    Returns:
        Module, data, and the arguments of the trainer as objects.

    Raises:
        FileNotFoundError: If a configuration file does not exist.
    """
    with _surroundings(args) as scratch:
        cli = DeepLabCLI("fit", add_checkpoint_config("fit", args, scratch))
    return cli.model, cli.datamodule, dict(cli.config_init["fit"].trainer)


class DeepLabCLI(LightningCLI):
    """Build the objects of a command with run folders, W&B modes and checkpoints that carry their configuration.

    LightningCLI parses and builds in its constructor, and calls the methods below in their order. `run` then runs the
    command.

    Args:
        command: `fit`, `validate`, `test` or `predict`; only its parser is built.
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
            parser_kwargs={"prog": "deeplab", "allow_abbrev": False},
            parser_class=_Parser,
        )

    # 1. The parser, and what the command line says.

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the subcommand that runs, since each takes half a second to describe."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of run folder, W&B, checkpoints and prediction, and link the classes to the data."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run's folder; made from model and time if null.",
        )
        parser.add_argument("--output_dir", type=str, default="runs", help="Folder that holds the runs' folders.")
        parser.add_argument(
            "--wandb",
            type=WandbMode,
            default="offline",
            help="Where W&B logs to; online falls back to offline if the server cannot be reached.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{key}": value for key, value in _CHECKPOINT_DEFAULTS.items()})
        # As it is in a file: a resumed experiment compares its settings with those that it was started with.
        parser.set_defaults({"model.lr_scheduler": {"class_path": class_path_of(PolyLR)}})
        if self._command == "predict":
            parser.add_argument(
                "--images",
                type=list[str] | str | None,
                default=None,
                help="Folder, image file or .txt list to predict, or a list of them: '[a, b.jpg]'.",
            )
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="Folder of the predictions; in the run's folder if null.",
            )
            _add_outputs(parser)
        if self._command != "fit":
            parser.add_argument(
                "--tta",
                type=str | None,
                default=None,
                help="Views whose probabilities are averaged: flip, scales=[0.75,1,1.25], or both with a comma.",
            )
            parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
            parser.add_argument(
                "--tile",
                type=int | None,
                default=None,
                help="Height and width in pixels of the tiles in which larger images are processed, a multiple of 32 "
                "such as 1024; their weighted probabilities are averaged. Whole images if null.",
            )
            parser.add_argument(
                "--overlap",
                type=int | None,
                default=None,
                help="Pixels that neighbouring tiles share, up to half of --tile; an eighth of it if null.",
            )
        if self._command in {"test", "predict"}:
            parser.add_argument(
                "--ensemble",
                type=list[str] | None,
                default=None,
                help="Further checkpoints whose probabilities are averaged: '[b.ckpt, c.ckpt]'. --experiment FOLDER, "
                "instead of --ckpt_path, takes the best of all folds of an experiment.",
            )
            parser.add_argument(
                "--min_area",
                type=str | None,
                default=None,
                help="Pixels of the smallest region that is kept: 64, or bottle=64,can=20 for these classes alone. A "
                "smaller one gets the class with which it shares the longest border.",
            )
        parser.link_arguments("data.num_classes", "model.net.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_channels", "model.net.init_args.in_channels", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.classes", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Skip: the configuration of the checkpoint was given as the first `-c`, so that options override it."""

    def _set_seed(self) -> None:
        """Check all values first, among them the seed."""
        check_values(self._command, self.config[self._command].as_dict())
        super()._set_seed()

    # 2. The configuration that the objects are built from.

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder, and set everything in the configuration that follows from it."""
        config = self.config[self._command]
        refuse_contradictions(self._command, config)
        folder = choose_folder(self._command, config)
        config.name = folder.name
        keep_folds(config, self._dump())
        self._config_text = self._dump()  # before what follows, which a user need not give again
        set_folder(config, folder)
        set_logger(self._command, config, folder)
        skip_pretrained_weights(config)
        set_command_options(self._command, config)
        set_plugins(config)
        # LightningCLI reads only the callbacks from here.
        self.trainer_defaults = {"callbacks": build_callbacks(self._command, config, self._config_text)}

    def _dump(self) -> str:
        """Return the configuration as YAML.

        Raises:
            ValueError: If it holds a value that cannot be read back.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Unable to serialize instance.*")  # said below
            text: str = self._parser(self._command).dump(self.config[self._command], skip_unset=False)
        if lost := re.search(r"([\w.]+): .?Unable to serialize instance ([^\n'\"]*)", text):
            raise UserError(
                f"{lost[1]}: the value {lost[2]} of this class cannot be written to config.yaml, so the training could "
                "not be resumed. Give a list, such as [-10, 10], where the class takes one, or a class of your own."
            )
        return text

    # 3. The objects, and the run.

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer; its arguments are the user's, so a value that it refuses is the user's mistake."""
        with user_mistakes(TypeError):
            return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Let checkpoints carry the configuration, and refuse callbacks and checkpoints that do not fit."""
        if any(isinstance(callback, BackboneFinetuning) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "BackboneFinetuning adds a parameter group for the backbone, which has its own here. Derive a callback "
                "from BaseFinetuning that freezes pl_module.net.backbone and makes it trainable later."
            )
        self.model.config = yaml.safe_load(self._config_text)
        config = self.config[self._command]
        if config.ckpt_path is not None:
            refuse_other_classes(config.ckpt_path, self.model.classes)
        self.model.region_filter = RegionFilter.parse(config.get("min_area"), self.model.classes.names)
        if config.get("tile") is not None:
            self.datamodule.max_predict_pixels = LARGE_PIXELS
        if self._command == "test" and config.ensemble and self.datamodule.test_dataset is None:
            raise UserError(
                "an ensemble cannot be tested on the validation part, on whose images its other members may have been "
                "trained: set data.test_dataset."
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """Skip: `run` does it, so that building and running are two steps."""

    def run(self) -> None:
        """Train, validate, test or predict with the objects that were built."""
        if self._command == "fit" and self.trainer.is_global_zero:
            print(f"Run folder: {self.trainer.default_root_dir}", flush=True)
            remove_leftovers(RunFolder(self.trainer.default_root_dir).checkpoints)
        try:
            super()._run_subcommand(self._command)
        except SIGTERMException:  # Lightning would end with status 0
            self._end_after_sigterm()
        except Exception:
            callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            stops = [callback for callback in callbacks if isinstance(callback, StopOnSigterm)]
            if any(stop.received for stop in stops):  # its reading processes, or other ranks, ended first
                self._end_after_sigterm()
            raise

    def _end_after_sigterm(self) -> NoReturn:
        """End with the status of a process that SIGTERM ended, and say how to go on."""
        if not self.trainer.is_global_zero:
            sys.exit(0)  # another status makes Lightning kill the first process
        last = RunFolder(self.trainer.default_root_dir).last
        is_resumable = self._command == "fit" and last.is_file()
        advice = f" To continue: deeplab fit --ckpt_path {shlex.quote(str(last))}" if is_resumable else ""
        print(f"stopped by SIGTERM.{advice}", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


def _add_outputs(parser: LightningArgumentParser) -> None:
    """Add the options that say what is written of predicted images besides their masks."""
    parser.add_argument("--overlays", type=bool, default=True, help="Whether to blend the masks into the images.")
    parser.add_argument(
        "--probabilities",
        type=Literal["npz", "uint8"] | None,
        default=None,
        help="Write the probabilities (K, H, W) of each image to an .npz file: as float16, or uint8 for 0-255.",
    )
    parser.add_argument(
        "--confidence",
        action="store_true",
        help="Write the highest probability of each pixel as a grey PNG, 255 for 1.",
    )
    parser.add_argument(
        "--coco",
        type=str | None,
        default=None,
        help="COCO JSON file to write in the folder of the predictions, with one RLE per image and class.",
    )
    parser.add_argument(
        "--csv",
        type=str | None,
        default=None,
        help="CSV file of a competition to write there, such as submission.csv.",
    )
    parser.add_argument(
        "--csv_size",
        type=int | None,
        default=None,
        help="Height and width of its masks; null: 256 with ids, the image's own with rle.",
    )
    parser.add_argument(
        "--csv_format",
        type=Literal["ids", "rle"] | None,
        default=None,
        help="ids, the default: image_id and the class ids of all pixels, row by row. rle: the runs of each class as "
        "Kaggle counts them, from 1 and column by column.",
    )


class _Parser(OneLineUsage, LightningArgumentParser):
    """Parse the options of a command; a wrong command line is reported in one line."""


class _Resolver(DeepLabCLI):
    """Parse and check a command line, without building any object."""

    def _set_seed(self) -> None:
        """Skip: nothing is drawn."""

    def before_instantiate_classes(self) -> None:
        """Keep the configuration as it was parsed."""
        refuse_contradictions(self._command, self.config[self._command])
        self.resolved: dict[str, Any] = yaml.safe_load(self._dump())

    def instantiate_classes(self) -> None:
        """Skip: this class only parses."""

    def after_instantiate_classes(self) -> None:
        """Skip: this class only parses."""


@contextmanager
def _surroundings(args: list[str]) -> Iterator[Path]:
    """Check the configuration files, silence hints, and report what Lightning refuses as mistakes of the user.

    Yields:
        A temporary folder.
    """
    check_configs(args)
    _quiet()
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch, warnings.catch_warnings():
        # Lightning warns of arguments that are not those of the process; here they are given on purpose.
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        with user_mistakes():
            yield Path(scratch)


@contextmanager
def _no_empty_folder() -> Iterator[None]:
    """Remove the folder that was made for a run which stopped before it wrote anything."""
    try:
        yield
    except BaseException:
        if folder := os.environ.get(RUN_FOLDER_VARIABLE):
            remove_if_empty(Path(folder))
        raise


@contextmanager
def user_mistakes(*kinds: type[Exception]) -> Iterator[None]:
    """Report what Lightning refuses as mistakes of the user, in one line.

    Lightning refuses a setting with a MisconfigurationException, or with a ValueError of its own. A checkpoint of
    another network is a mistake too.

    Args:
        kinds: Further classes of errors to report.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        is_own = isinstance(error, ValueError) and raised_in(error, "lightning")
        if is_own or isinstance(error, (MisconfigurationException, *kinds)):
            raise UserError(" ".join(str(error).split())) from error
        if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
            reason = textwrap.shorten(str(error).partition(":")[2], 200, placeholder=" ...")
            raise UserError(f"the checkpoint is of another network: {reason} {START_FROM_WEIGHTS}") from error
        raise


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
