"""Run `deeplab fit`, `validate`, `test` and `predict`, or build what they would run with."""

import logging
import sys
import warnings
from typing import Any

import lightning as L

from deeplab_lightning.checkpoints import read_checkpoint
from deeplab_lightning.commands.checkpoint import add_checkpoint_config, expand_experiment
from deeplab_lightning.commands.lightning_cli import ConfigResolver, DeepLabCLI
from deeplab_lightning.commands.options import option
from deeplab_lightning.commands.surroundings import environment_restored, no_empty_folder, surroundings, user_mistakes
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.errors import UserError
from deeplab_lightning.inference.exported import is_exported
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.saved_module import follow
from deeplab_lightning.schedules import check_schedule


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
    with surroundings(args) as scratch, no_empty_folder():
        cli = DeepLabCLI(command, add_checkpoint_config(command, args, scratch))
        cli.run()
        if command == "fit" and cli.trainer.is_global_zero:
            _write_page(RunFolder(cli.trainer.default_root_dir))


def _write_page(run: RunFolder) -> None:
    """Write the page of a run, or pooled result and page of the experiment again whose fold was trained further."""
    result = run.read_result()
    if result is None or result["val"] is None:
        return
    is_pooled = ExperimentFolder(run.path.parent).result.is_file()
    if run.job.is_file() and not is_pooled:
        return  # a fold; `kfold` writes the page of all
    from deeplab_lightning.experiments.aggregate import aggregate  # no other command of Lightning needs them
    from deeplab_lightning.experiments.page import write_page

    folder = run.path.parent if is_pooled else run.path
    try:
        if is_pooled:
            aggregate(folder)
        print(f"Page: {write_page(folder)}", flush=True)
    except (UserError, OSError) as error:  # the training itself has ended well
        print(f"the results of {folder} were not written: {error}", file=sys.stderr)


def resolve_fit_config(args: list[str]) -> dict[str, Any]:
    """Return the complete configuration that `deeplab fit` would run with, without running it.

    Args:
        args: Options of `fit`.

    Raises:
        FileNotFoundError: If a configuration file does not exist.
        SystemExit: With status 2, if a key or a type is wrong.
    """
    with surroundings(args):
        return ConfigResolver("fit", args).resolved


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
    trial += ["--loggers", "[]"]
    with surroundings(args) as scratch, environment_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainings give them
        logging.disable(logging.INFO)
        try:
            cli = DeepLabCLI("fit", [*args, *trial, "--output_dir", str(scratch)])
            with user_mistakes(TypeError, ValueError):  # of optimiser and schedule, whose arguments are the user's
                optimizer = cli.model.build_optimizer()
                if cli.model.scheduler_factory is not None:
                    check_schedule(cli.model.scheduler_factory, optimizer, interval=cli.model.lr_interval)
        finally:
            logging.disable(logging.NOTSET)


def load_checkpoint(args: list[str]) -> tuple[SegmentationModule, SegmentationDataModule, L.Trainer]:
    """Build the module with its trained weights, the data and the trainer of a checkpoint, without running anything.

    Args:
        args: Options of `validate`, with `--ckpt_path` among them. The trainer's root folder is the run's folder.

    Raises:
        FileNotFoundError: If a configuration file or the checkpoint does not exist.
        ValueError: If it is an exported file.
    """
    if (path := option(args, "--ckpt_path")) is not None and is_exported(path):
        raise UserError(f"{path} was exported; give the checkpoint that it was exported from.")
    with surroundings(args) as scratch:
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
    with surroundings(args) as scratch:
        cli = DeepLabCLI("fit", add_checkpoint_config("fit", args, scratch))
    return cli.model, cli.datamodule, dict(cli.config_init["fit"].trainer)
