"""Build the parsers of the commands that train and compare experiments."""

import argparse
from pathlib import Path

from deeplab_lightning.commands.parsers.parser import OF_FIT, OptionParser

WANDB_PROJECT = "deeplab_lightning"


def kfold_parser() -> OptionParser:
    """Build the parser of `deeplab kfold`."""
    parser = OptionParser(
        prog="deeplab kfold",
        description="Train every fold in a process of its own, and pool the validation results. " + OF_FIT + ".",
    )
    parser.add_argument("--n_folds", type=int, help="number of folds; data.n_folds if not given")
    parser.add_argument("--folds", help="folds to train, such as 0,2; all if not given")
    parser.add_argument("--seeds", help="seeds to repeat all folds with, such as 0,1,2; seed_everything if not given")
    parser.add_argument("--name", help="name of the experiment's folder; made from model and time if not given")
    parser.add_argument(
        "--resume", action="store_true", help="continue the experiment of this --name, with its own settings without -c"
    )
    parser.add_argument("--predictions", action="store_true", help="also write the out-of-fold predictions")
    parser.add_argument("--aggregate", metavar="FOLDER", help="only pool the finished folds of an experiment")
    parser.add_argument(
        "--cheap",
        action="store_true",
        help="train no further fold once the experiment can hardly be found better than --baseline any more",
    )
    parser.add_argument("--baseline", type=Path, help="folder of the experiment to beat, for --cheap")
    _add_launcher_options(parser)
    return parser


def grid_parser() -> OptionParser:
    """Build the parser of `deeplab grid`."""
    parser = OptionParser(
        prog="deeplab grid",
        description="Run a K-fold experiment for every combination of a grid file's axes. The same command continues "
        "an interrupted grid. " + OF_FIT + ", for all experiments.",
    )
    parser.add_argument("-c", "--config", required=True, help="grid file, such as configs/grids/backbones.yaml")
    parser.add_argument("--name", help="name of the grid's folder; that of the grid file if not given")
    parser.add_argument("--output_dir", help="folder that holds the grid's folder; that of the grid file if not given")
    parser.add_argument(
        "--cheap",
        action="store_true",
        help="train no further fold of an experiment that can hardly be found better than the first one any more",
    )
    parser.add_argument("--list", action="store_true", help="list the experiments with their options, and stop")
    _add_launcher_options(parser)
    return parser


def tune_parser() -> OptionParser:
    """Build the parser of `deeplab tune`."""
    parser = OptionParser(
        prog="deeplab tune",
        description="Search hyperparameters with Ray Tune: each trial is a training on one fold (data.fold), and ASHA "
        "stops the worst between their epochs. Writes the best settings as a configuration, and says how to judge them "
        "on the folds that chose nothing. The same command continues an interrupted search. " + OF_FIT + ".",
    )
    parser.add_argument(
        "-c", "--config", required=True, help="search file, such as configs/searches/learning_rate.yaml"
    )
    parser.add_argument("--name", help="name of the search's folder; that of the search file if not given")
    parser.add_argument("--output_dir", help="folder that holds the search's folder; that of the file if not given")
    parser.add_argument("--jobs", type=int, help="number of trials that train at once (as many as the cluster holds)")
    parser.add_argument(
        "--launcher",
        default="ray",
        help="options of Ray: ray, or a file such as configs/launcher/ray.yaml; --launcher.KEY VALUE, such as "
        "--launcher.gpus 0, overrides them. Without a running cluster, Ray starts on this machine (ray)",
    )
    parser.set_defaults(devices=None, in_process=False, detach=False)
    return parser


def _add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how many folds train at once, and where."""
    parser.add_argument("--jobs", type=int, help="number of folds that train at once (1; all in a cluster's queue)")
    parser.add_argument("--devices", help="indices of the GPUs that the folds share, such as 0,1,2,3")
    parser.add_argument(
        "--in_process", action="store_true", help="train one fold after the other in this process, for debugging"
    )
    parser.add_argument(
        "--launcher",
        default="local",
        help="where the folds train: local, slurm, ray, or a file such as configs/launcher/slurm.yaml; --launcher.KEY "
        "VALUE, such as --launcher.partition gpu, overrides its options (local)",
    )
    parser.add_argument(
        "--detach", action="store_true", help="put the folds into the cluster's queue, and do not wait for them"
    )


def status_parser() -> OptionParser:
    """Build the parser of `deeplab status`."""
    parser = OptionParser(
        prog="deeplab status",
        description="Show the folds that `--launcher slurm` put into a cluster's queue, or the trials of `deeplab "
        "tune`: state, epoch, best mIoU, time. Works on any machine of the cluster.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the experiment, the grid or the search")
    parser.add_argument("--follow", action="store_true", help="go on until all have ended; Ctrl-C stops only the table")
    return parser


def cancel_parser() -> OptionParser:
    """Build the parser of `deeplab cancel`."""
    parser = OptionParser(
        prog="deeplab cancel",
        description="Take the folds that `--launcher slurm` put there out of the cluster's queue. Those that train "
        "save their state first, so that --resume continues them.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the experiment or the grid")
    return parser


def compare_parser() -> OptionParser:
    """Build the parser of `deeplab compare`."""
    parser = OptionParser(
        prog="deeplab compare",
        description="Compare experiments of `deeplab kfold` or single runs; the first is the baseline. Experiments "
        "that differ in the seed alone are pooled.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        help="folders of experiments or runs, folders with offline W&B runs, or wandb:entity/project/group",
    )
    parser.add_argument(
        "--epoch", choices=("last", "best"), default="last", help="epoch of each training to compare (last)"
    )
    parser.add_argument("--baseline", help="name of the experiment to compare with; the first if not given")
    parser.add_argument(
        "--all_pairs", action="store_true", help="judge every pair, with p-values adjusted over all of them"
    )
    parser.add_argument("--csv", type=Path, help="CSV file to write the table to")
    parser.add_argument("--json", type=Path, help="JSON file to write verdicts, table and notes to")
    parser.add_argument("--html", type=Path, help="HTML file to write a page with curves, classes and images to")
    return parser


def report_parser() -> OptionParser:
    """Build the parser of `deeplab report`."""
    parser = OptionParser(
        prog="deeplab report",
        description="Write the page of one run or one experiment: classes, confusions, curves, images, settings. "
        "`deeplab kfold` writes it at its end; `deeplab compare --html` writes that of several.",
    )
    parser.add_argument("folder", metavar="RUN_OR_EXPERIMENT", type=Path, help="folder of a run or an experiment")
    parser.add_argument(
        "--epoch", choices=("last", "best"), default="last", help="epoch of each training to show (last)"
    )
    parser.add_argument("--html", type=Path, help="HTML file to write (report.html in the folder)")
    return parser


def wandb_report_parser() -> OptionParser:
    """Build the parser of `deeplab wandb-report`."""
    parser = OptionParser(
        prog="deeplab wandb-report",
        description="Write a W&B Report that compares experiments: curves, classes, quality against cost, settings.",
    )
    parser.add_argument(
        "--groups", nargs="+", required=True, help="groups of W&B runs, one per experiment, such as lite0-3f2a1c"
    )
    parser.add_argument("--project", default=WANDB_PROJECT, help=f"W&B project of the runs ({WANDB_PROJECT})")
    parser.add_argument(
        "--entity", default="", help="user or team that owns the project; that of your account if not given"
    )
    parser.add_argument("--title", help="title of the report; made from the names of the groups if not given")
    parser.add_argument(
        "--classes", nargs="+", default=[], help="classes whose IoU is drawn; all classes of the runs if not given"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the blocks of the report without an account, and stop"
    )
    return parser


def wandb_sync_parser() -> OptionParser:
    """Build the parser of `deeplab wandb-sync`."""
    parser = OptionParser(
        prog="deeplab wandb-sync",
        description="Upload the W&B runs that were tracked offline, those that were not uploaded yet.",
    )
    parser.add_argument("folders", nargs="*", default=["runs"], help="folders that hold runs, at any depth (runs)")
    return parser
