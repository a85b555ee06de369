"""Build the parsers of the commands without importing what the commands need, so that their `--help` is quick."""

from collections.abc import Callable

from deeplab_lightning.commands.parsers.data import (
    check_parser,
    init_parser,
    show_parser,
    split_parser,
    synthetic_parser,
)
from deeplab_lightning.commands.parsers.experiments import (
    cancel_parser,
    compare_parser,
    grid_parser,
    kfold_parser,
    report_parser,
    status_parser,
    tune_parser,
    wandb_report_parser,
    wandb_sync_parser,
)
from deeplab_lightning.commands.parsers.models import (
    benchmark_parser,
    export_parser,
    tune_batch_parser,
    tune_crf_parser,
    tune_lr_parser,
)
from deeplab_lightning.commands.parsers.parser import OptionParser
from deeplab_lightning.commands.parsers.submission import (
    best_parser,
    calibrate_parser,
    masks_parser,
    pseudo_parser,
    suspects_parser,
)

PARSERS: dict[str, Callable[[], OptionParser]] = {
    "tune-crf": tune_crf_parser,
    "tune-batch": tune_batch_parser,
    "tune-lr": tune_lr_parser,
    "kfold": kfold_parser,
    "grid": grid_parser,
    "tune": tune_parser,
    "status": status_parser,
    "cancel": cancel_parser,
    "compare": compare_parser,
    "report": report_parser,
    "best": best_parser,
    "pseudo": pseudo_parser,
    "masks": masks_parser,
    "suspects": suspects_parser,
    "calibrate": calibrate_parser,
    "wandb-report": wandb_report_parser,
    "wandb-sync": wandb_sync_parser,
    "split": split_parser,
    "benchmark": benchmark_parser,
    "export": export_parser,
    "data synthetic": synthetic_parser,
    "data init": init_parser,
    "data check": check_parser,
    "data show": show_parser,
}
