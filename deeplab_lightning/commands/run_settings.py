"""Complete the configuration of a run: its folder, folds, logger and callbacks."""

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.plugins import CheckpointIO, LayerSync
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from deeplab_lightning.callbacks import EpochLines, PredictionWriter, RunRecord, SaveConfig, StopOnDivergence
from deeplab_lightning.callbacks.calibration import FitTemperature
from deeplab_lightning.callbacks.checkpoint_io import AtomicCheckpointIO, RunCheckpoint, TopCheckpoint, name_with_score
from deeplab_lightning.callbacks.cudnn_benchmark import CudnnBenchmarkInTraining
from deeplab_lightning.callbacks.data_line import DataLine
from deeplab_lightning.callbacks.disk_space import DiskSpace
from deeplab_lightning.callbacks.ensemble import AverageProbabilities
from deeplab_lightning.callbacks.exact_resume import ExactResume
from deeplab_lightning.callbacks.patience import PatienceWarning
from deeplab_lightning.callbacks.progress import NetworkLine
from deeplab_lightning.callbacks.search_gate import SearchGate
from deeplab_lightning.callbacks.sigterm import EndAtSecondInterrupt, StopOnSigterm
from deeplab_lightning.callbacks.validate_last_epoch import ValidateLastEpoch
from deeplab_lightning.callbacks.weight_averaging import SlowAverageWarning
from deeplab_lightning.checkpoints import read_checkpoint
from deeplab_lightning.class_paths import class_path_of, is_subclass, names_class
from deeplab_lightning.data.datasets.image_folder import check_source
from deeplab_lightning.inference import Views
from deeplab_lightning.inference.calibration_file import Averaged, check_temperature
from deeplab_lightning.inference.outputs import Outputs
from deeplab_lightning.inference.tiles import Tiles
from deeplab_lightning.loopback import LoopbackEnvironment
from deeplab_lightning.models.saving import NO_PRETRAINED
from deeplab_lightning.restarts import note_run, restarted_run
from deeplab_lightning.runs import (
    RUN_FOLDER_VARIABLE,
    ExperimentFolder,
    RunFolder,
    choose_run_folder,
    refuse_output_among_images,
)
from deeplab_lightning.sync_batchnorm import TimmSyncBatchNorm
from deeplab_lightning.tracking.guard import LoggerGuard
from deeplab_lightning.tracking.loggers import named_logger
from deeplab_lightning.tracking.mode import choose_mode
from deeplab_lightning.tracking.summary import WandbEvaluation, WandbSummary
from deeplab_lightning.usage import usage_error

_WANDB = Namespace(
    class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(project="deeplab_lightning")
)  # as in configs/base.yaml


def choose_folder(command: str, config: Namespace) -> RunFolder:
    """Choose the folder that a run writes to, and replace `ckpt_path: last` by a path.

    A training whose job SLURM starts again goes on in its folder, from its last checkpoint if there is one.

    Raises:
        ValueError: If the last checkpoint is damaged.
        SystemExit: With status 2, if `last` is asked for without the run's name.
    """
    if config.ckpt_path == "last" and not config.name:
        usage_error("ckpt_path: last needs the run's --name.")
    if command == "fit" and (again := restarted_run(config.output_dir)) is not None:
        os.environ[RUN_FOLDER_VARIABLE] = str(again)
        if again.last.is_file():
            read_checkpoint(again.last)
            config.ckpt_path = str(again.last)
        return again
    if command == "test" and (others := config.get("ensemble")):
        experiment = ExperimentFolder.of_checkpoints([config.ckpt_path, *others])
        if experiment is not None:  # whose result it is, and not that of its first fold
            return RunFolder(experiment.path)
    folder = choose_run_folder(
        name=config.name,
        output_dir=config.output_dir,
        checkpoint=config.ckpt_path,
        model=config.model.net.as_dict(),
        is_training=command == "fit",
    )
    if config.ckpt_path == "last":
        config.ckpt_path = None
        if folder.last.is_file():
            read_checkpoint(folder.last)
            config.ckpt_path = str(folder.last)
    if command == "fit":
        note_run(config.output_dir, folder)
    return folder


def set_folder(config: Namespace, folder: RunFolder) -> None:
    """Let trainer and checkpoints write to the run's folder."""
    config.trainer.default_root_dir = str(folder)
    config.checkpoint.dirpath = str(folder.checkpoints)
    is_without = config.data.split != "official" and config.data.fold is None
    if is_without or config.trainer.limit_val_batches == 0:
        config.checkpoint.monitor, config.checkpoint.save_top_k = None, 0  # without validation there is no best epoch


def set_logger(command: str, config: Namespace, folder: RunFolder) -> None:
    """Log one W&B run per training, in its folder, also after a resume, and to the other loggers that are wanted.

    Other commands log nothing here.

    Raises:
        UnavailableError: If the package of a logger is not installed.
    """
    logger = _WANDB.clone() if config.trainer.logger is None else config.trainer.logger
    mode = choose_mode(config.wandb) if command == "fit" else "disabled"
    loggers = logger if isinstance(logger, list) else [logger]
    is_wandb = [names_class(entry, "WandbLogger") for entry in loggers]
    if command != "fit" or config.trainer.fast_dev_run:
        config.trainer.logger = False
        return
    wanted = config.loggers if isinstance(config.loggers, list) else [config.loggers]
    further = [_entry_of(named_logger(name, folder)) for name in dict.fromkeys(wanted)]
    if mode == "disabled":
        others = [entry for entry, wandb in zip(loggers, is_wandb, strict=True) if not wandb and entry]
        is_default = logger is True and not further
        config.trainer.logger = is_default or [*(e for e in others if e is not True), *further] or False
        return
    config.trainer.logger = [*(e for e in loggers if not isinstance(e, bool)), *further] if further else logger
    for entry, wandb in zip(loggers, is_wandb, strict=True):
        if wandb:
            entry.init_args.save_dir = str(folder)
            entry.init_args.name = entry.init_args.get("name") or folder.name
            entry.init_args.offline = mode == "offline"
            entry.init_args.id = entry.init_args.get("id") or (folder.read_wandb_run() or {}).get("id")


def _entry_of(named: dict[str, Any]) -> Namespace:
    return Namespace(class_path=named["class_path"], init_args=Namespace(**named["init_args"]))


def skip_pretrained_weights(config: Namespace) -> None:
    """Build the network without pretrained weights if a checkpoint replaces them."""
    net = config.model.net
    for key, value in NO_PRETRAINED.items():
        if config.ckpt_path is not None and key in net.get("init_args", {}):
            net.init_args[key] = value


def set_command_options(command: str, config: Namespace) -> None:
    """Set the options of Lightning's command that are not the user's to choose, and check what is to be predicted.

    Raises:
        FileNotFoundError: If images do not exist.
        UserError: If they are files of another kind, or the output lies among them.
    """
    if command in {"validate", "test"}:
        config.verbose = False  # RunRecord prints the table
    if command == "predict":
        config.return_predictions = False
        given = config.data.predict_images = config.images or config.data.predict_images
        for source in [given] if isinstance(given, str) else given or ():  # before the network is loaded
            check_source(Path(source))
        refuse_output_among_images(config.output, given)
        if config.tile is not None:  # one image in memory, instead of the batches that each process reads ahead
            config.data.eval_batch_size, config.data.num_workers = 1, 0


def set_plugins(config: Namespace) -> None:
    """Add the plugins for checkpoints, BatchNorm and connections on one machine; those of the user replace them."""
    trainer = config.trainer
    given = trainer.plugins or []
    plugins = list(given) if isinstance(given, list) else [given]
    in_strategy = getattr(trainer.strategy, "init_args", Namespace()).get("checkpoint_io")
    if in_strategy is None and not any(is_subclass(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(_entry(AtomicCheckpointIO))
    if trainer.sync_batchnorm and not any(is_subclass(plugin, LayerSync) for plugin in plugins):
        trainer.sync_batchnorm = False  # Lightning's own
        plugins.append(_entry(TimmSyncBatchNorm))
    if _starts_processes(trainer) and not any(is_subclass(plugin, ClusterEnvironment) for plugin in plugins):
        plugins.append(_entry(LoopbackEnvironment))
    trainer.plugins = plugins


def _starts_processes(trainer: Namespace) -> bool:
    """Check whether Lightning starts the processes of a training, if there are several, by running this program."""
    is_elsewhere = any(
        environment.detect()
        for environment in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    )
    by_name = trainer.strategy in {"auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"}
    return trainer.num_nodes == 1 and by_name and not is_elsewhere


def _entry(kind: type) -> Namespace:
    return Namespace(class_path=class_path_of(kind), init_args=Namespace())


def build_callbacks(command: str, config: Namespace, text: str) -> list[L.Callback]:
    """Build the callbacks that every run of a command has, besides those of the configuration.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        config: The configuration.
        text: The configuration as YAML, to be saved.
    """
    callbacks: list[L.Callback] = [EndAtSecondInterrupt(), SaveConfig(text), RunRecord(config.seed_everything)]
    callbacks.append(CudnnBenchmarkInTraining())
    if command == "fit":
        callbacks += _fit_callbacks(config)
    if command == "predict":
        chosen = {key: config[key] for key in Outputs._fields}
        callbacks.append(PredictionWriter(config.output, Outputs(**chosen)))
    views = Views.parse(config.get("tta"))
    tiles = Tiles.parse(config.get("tile"), config.get("overlap"))
    weights, engine = config.get("ensemble_weights"), config.get("engine", "torch")
    averaged = Averaged.of(1 + len(config.get("ensemble") or ()), weights, views)
    if config.get("temperature") is not None:
        check_temperature(config.temperature, averaged)
    if config.get("calibration") is not None:
        callbacks.append(FitTemperature(config.calibration, averaged))
    is_averaged = views != Views() or bool(config.get("ensemble")) or tiles is not None or weights is not None
    if is_averaged or engine != "torch":
        further = config.get("ensemble") or ()
        callbacks.append(
            AverageProbabilities(further, views, tiles, weights=weights, engine=engine, trust=config.trust)
        )
    is_own = not is_averaged and config.get("min_area") is None
    if command in {"validate", "test"} and is_own:  # a run of W&B is of one checkpoint
        callbacks.append(WandbEvaluation(config.wandb))
    if config.trainer.enable_progress_bar is not False and not _has_progress_bar(config):
        callbacks.append(RichProgressBar() if sys.stdout.isatty() else EpochLines())
    return callbacks


def _has_progress_bar(config: Namespace) -> bool:
    """Check whether the user chose a progress bar, which takes the place of ours."""
    entries = config.trainer.callbacks or []
    return any(is_subclass(entry, ProgressBar) for entry in (entries if isinstance(entries, list) else [entries]))


def _fit_callbacks(config: Namespace) -> list[L.Callback]:
    """Build the callbacks of a training. `WandbSummary` reads what `RunRecord` wrote, so it must come after it."""
    callbacks: list[L.Callback] = [WandbSummary()] if config.trainer.logger else []
    callbacks += [DataLine(), DiskSpace(), LoggerGuard(), ValidateLastEpoch(), StopOnDivergence(), StopOnSigterm()]
    callbacks += [SearchGate(), SlowAverageWarning(), PatienceWarning()]
    if config.trainer.enable_model_summary is not False:
        callbacks.append(NetworkLine())
        config.trainer.enable_model_summary = False
    callbacks.append(ExactResume(config.seed_everything if isinstance(config.seed_everything, int) else None))
    return [*callbacks, *_checkpoints(config.checkpoint)]


def _checkpoints(best: Namespace) -> list[L.Callback]:
    """Build the callbacks of `last.ckpt` and of further files, and leave only `best.ckpt` to the configuration's own.

    Args:
        best: Arguments of the configuration's callback, which are changed.
    """
    given = best.as_dict()
    best.filename, best.save_top_k, best.save_on_exception = "best", min(abs(best.save_top_k), 1), False
    callbacks: list[L.Callback] = []
    if given["save_top_k"] != 0 and (given["save_top_k"] != 1 or given["filename"] != "best"):
        name = name_with_score(best.monitor) if given["filename"] == "best" else given["filename"]
        callbacks.append(TopCheckpoint(**{**given, "filename": name, "save_last": None, "save_on_exception": False}))
    # Not by save_last, which writes only when the best is written, and loses the epochs since.
    last = RunCheckpoint(
        dirpath=best.dirpath,
        filename="last",
        save_on_exception=given["save_on_exception"],
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    return [*callbacks, last]
