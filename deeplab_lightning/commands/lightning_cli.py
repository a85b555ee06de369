"""Parse a command line of `fit`, `validate`, `test` or `predict`, and build its objects with LightningCLI."""

import os
import re
import shlex
import signal
import sys
import warnings
from typing import Any, NoReturn

import lightning as L
import yaml
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from deeplab_lightning.callbacks.checkpoint_io import RunCheckpoint
from deeplab_lightning.callbacks.sigterm import StopOnSigterm
from deeplab_lightning.class_paths import class_path_of
from deeplab_lightning.commands.checkpoint import (
    refuse_other_classes,
    say_what_was_held_out,
)
from deeplab_lightning.commands.option_values import check_values
from deeplab_lightning.commands.options import without_empty_configs
from deeplab_lightning.commands.refusals import (
    refuse_contradictions,
    refuse_two_averages,
    refuse_unknown_monitors,
    refuse_validation_monitors,
)
from deeplab_lightning.commands.run_folds import keep_folds, take_own_folds
from deeplab_lightning.commands.run_settings import (
    build_callbacks,
    choose_folder,
    set_command_options,
    set_folder,
    set_logger,
    set_plugins,
    skip_pretrained_weights,
)
from deeplab_lightning.commands.surroundings import user_mistakes
from deeplab_lightning.commands.training_options import add_evaluation_options, add_run_options
from deeplab_lightning.crf import DenseCRF  # noqa: F401, so that the command line knows the bare name
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.images import LARGE_PIXELS
from deeplab_lightning.errors import UserError, is_interrupt
from deeplab_lightning.experiments.launchers.slurm import requeue
from deeplab_lightning.files import remove_leftovers
from deeplab_lightning.inference import Views
from deeplab_lightning.inference.engines import check_engine
from deeplab_lightning.inference.exported import ExportedNet, refuse_impossible
from deeplab_lightning.inference.regions import RegionFilter
from deeplab_lightning.list_overrides import ListOverrides
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.schedules import PolyLR
from deeplab_lightning.usage import OneLineUsage

_CHECKPOINT_DEFAULTS = {
    "monitor": "val/miou",
    "mode": "max",
    "filename": "best",
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}


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
            args=[command, *without_empty_configs(args)],
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
        add_run_options(parser)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{key}": value for key, value in _CHECKPOINT_DEFAULTS.items()})
        # As it is in a file: a resumed experiment compares its settings with those that it was started with.
        parser.set_defaults({"model.lr_scheduler": {"class_path": class_path_of(PolyLR)}})
        if self._command != "fit":
            add_evaluation_options(parser, self._command)
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
        take_own_folds(config)
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
        with user_mistakes(TypeError, ImportError, RuntimeError):
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
        if self._command != "fit":
            self._check_exported()
        if self._command == "fit":
            refuse_unknown_monitors(self.trainer.callbacks, self.model.logged_names())  # type: ignore[attr-defined]
            if not self.datamodule.has_validation:
                refuse_validation_monitors(self.trainer.callbacks)  # type: ignore[attr-defined]
            refuse_two_averages(self.trainer.callbacks)  # type: ignore[attr-defined]
        else:
            check_engine(config.engine, self.trainer.strategy.root_device, self.trainer.precision)
        if config.ckpt_path is not None:
            refuse_other_classes(config.ckpt_path, self.model.classes, goes_on=self._command == "fit")
        if isinstance(self.model.net, ExportedNet):
            refuse_other_classes(self.model.net.file.path, self.model.classes, goes_on=False)
        self.model.region_filter = RegionFilter.parse(config.get("min_area"), self.model.classes.names)
        if config.get("tile") is not None:
            self.datamodule.max_predict_pixels = LARGE_PIXELS
        if self._command == "test" and config.ensemble and self.datamodule.test_dataset is None:
            raise UserError(
                "an ensemble cannot be tested on the validation part, on whose images its other members may have been "
                "trained: set data.test_dataset."
            )

    def _check_exported(self) -> None:
        """Refuse options that the network of an exported file cannot follow, and say what it held out."""
        config = self.config[self._command]
        wanted = ("ensemble", "probabilities", "confidence")
        refuse_impossible(
            self.model.net,
            views=Views.parse(config.tta),
            is_averaged=any(config.get(key) for key in wanted) or self.model.postprocess is not None,
            is_tiled=config.tile is not None,
            engine=config.engine,
        )
        if isinstance(self.model.net, ExportedNet) and self._command != "predict":
            say_what_was_held_out(self._command, self.model.net.file, self.datamodule)

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
        except SystemExit as ending:
            if not isinstance(ending.__context__, KeyboardInterrupt):
                raise
            self._end_after(signal.SIGINT)  # Lightning ends with status 1, and does not say how to go on
        except Exception as error:
            if is_interrupt(error):
                self._end_after(signal.SIGINT)
            if any(stop.received for stop in self._stops()):  # its reading processes, or other ranks, ended first
                self._end_after_sigterm()
            raise

    def _end_after_sigterm(self) -> NoReturn:
        """End after SIGTERM, or after the signal of a time limit."""
        if self.trainer.is_global_zero and any(stop.is_limit for stop in self._stops()):
            print("stopped by the time limit; the job is put into the queue again.", file=sys.stderr, flush=True)
            requeue(os.environ["SLURM_JOB_ID"])  # which ends this process
        self._end_after(signal.SIGTERM)

    def _end_after(self, number: signal.Signals) -> NoReturn:
        """End with the status of a process that a signal ended, and say how to go on."""
        if not self.trainer.is_global_zero:
            sys.exit(0)  # another status makes Lightning kill the first process
        last = RunFolder(self.trainer.default_root_dir).last
        is_resumable = self._command == "fit" and last.is_file()
        advice = f" To continue: deeplab fit --ckpt_path {shlex.quote(str(last))}" if is_resumable else ""
        print(f"stopped by {number.name}.{advice}", file=sys.stderr)
        sys.exit(128 + number)

    def _stops(self) -> list[StopOnSigterm]:
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, StopOnSigterm)]


class _Parser(ListOverrides, OneLineUsage, LightningArgumentParser):
    """Parse the options of a command; a wrong command line is reported in one line."""

    def parse_args(self, args: Any = None, namespace: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Parse options, of which a list of classes replaces the earlier one as well."""
        if args is not None and "--config" in self._option_string_actions:
            args = self.lists_as_configs(args)
        return super().parse_args(args, namespace, **kwargs)


class ConfigResolver(DeepLabCLI):
    """Parse and check a command line, without building any object."""

    def _set_seed(self) -> None:
        """Skip: nothing is drawn."""

    def before_instantiate_classes(self) -> None:
        """Keep the configuration as it was parsed."""
        refuse_contradictions(self._command, self.config[self._command])
        take_own_folds(self.config[self._command])
        self.resolved: dict[str, Any] = yaml.safe_load(self._dump())

    def instantiate_classes(self) -> None:
        """Skip: this class only parses."""

    def after_instantiate_classes(self) -> None:
        """Skip: this class only parses."""
