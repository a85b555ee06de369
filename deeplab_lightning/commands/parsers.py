"""Build the parsers of the commands without importing what the commands need, so that their `--help` is quick."""

import argparse
from collections.abc import Callable
from pathlib import Path

from deeplab_lightning.usage import OneLineUsage

# Formats of exported files, and places of their preprocessing.
FORMATS = ("onnx", "openvino", "torch_export")
PLACES = ("graph", "metadata")
WANDB_PROJECT = "deeplab_lightning"
TRUST_HELP = "import the classes that the checkpoint names from any package, which runs their code"
_OF_FIT = "All other options are those of `deeplab fit`"
_OF_DATA = "All other options are `-c CONFIG`, of which only the data part is read, and `--data.*`, which override it."


class OptionParser(OneLineUsage, argparse.ArgumentParser):
    """Parse a command's own options; a wrong command line is reported in one line."""


def kfold_parser() -> OptionParser:
    """Build the parser of `deeplab kfold`."""
    parser = OptionParser(
        prog="deeplab kfold",
        description="Train every fold in a process of its own, and pool the validation results. " + _OF_FIT + ".",
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
        "an interrupted grid. " + _OF_FIT + ", for all experiments.",
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
        "on the folds that chose nothing. The same command continues an interrupted search. " + _OF_FIT + ".",
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


def best_parser() -> OptionParser:
    """Build the parser of `deeplab best`."""
    parser = OptionParser(
        prog="deeplab best",
        description="Find how to predict with the networks of experiments that share their folds, or of runs that "
        "share their validation images: which to average, with which weights and views, and what comes after. Nothing "
        "is judged by the images that it was chosen on. Writes the options of `deeplab predict`.",
    )
    parser.add_argument(
        "experiments", nargs="+", metavar="EXPERIMENT", type=Path, help="folders of `deeplab kfold` or runs, at most 6"
    )
    parser.add_argument(
        "--tta",
        nargs="*",
        default=["flip", "scales=[0.75,1,1.25]", "scales=[0.75,1,1.25],flip"],
        metavar="VIEWS",
        help="views to try, as `predict --tta` takes them: flip, scales=[0.75,1,1.25] and both if not given; none "
        "after --tta alone",
    )
    parser.add_argument(
        "--min_areas", default="32,128,512", help="pixels of the smallest region to try (32,128,512); '' for none"
    )
    parser.add_argument(
        "--tile", type=int, help="size of the tiles to try for larger images, as `predict --tile` takes it"
    )
    parser.add_argument("--overlap", type=int, help="pixels that neighbouring tiles share (an eighth of --tile)")
    parser.add_argument("--crf", type=Path, help="crf.yaml of `deeplab tune-crf`, to try with and without it")
    parser.add_argument("--output", type=Path, help="file to write (best.yaml in the first experiment's folder)")
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
    return parser


def pseudo_parser() -> OptionParser:
    """Build the parser of `deeplab pseudo`."""
    parser = OptionParser(
        prog="deeplab pseudo",
        description="Label images by the networks of an experiment, each class from the confidence on that made it "
        "right on held-out images; all other pixels are void. Writes masks and a configuration that trains on them.",
    )
    parser.add_argument("--experiment", type=Path, required=True, help="folder of `deeplab kfold`, or of a run")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images to label")
    parser.add_argument("--output", type=Path, required=True, help="new folder for masks, pseudo.csv and pseudo.yaml")
    parser.add_argument(
        "--precision", type=float, default=0.95, help="share of a class's labelled pixels that have to be right (0.95)"
    )
    parser.add_argument("--tta", help="views of each image, as `predict --tta` takes them")
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
    return parser


def masks_parser() -> OptionParser:
    """Build the parser of `deeplab masks`."""
    parser = OptionParser(
        prog="deeplab masks",
        description="Turn the CSV file of a competition, as `predict --csv` writes it, back into masks: palette PNGs "
        "whose values are the class ids, which MaskFolderDataset reads. Nothing is written if a row cannot be used.",
    )
    parser.add_argument(
        "csv",
        metavar="CSV",
        type=Path,
        help="rows of image and class ids (image_id, PredictionString), or of image, class and runs as Kaggle counts "
        "them (ImageId, ClassId, EncodedPixels)",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for the masks")
    parser.add_argument(
        "--images", type=Path, help="folder of the images: masks are enlarged to the size of each, to the nearest pixel"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels of the masks in the file (a square of ids; with runs the image's own)",
    )
    return parser


def suspects_parser() -> OptionParser:
    """Build the parser of `deeplab suspects`."""
    parser = OptionParser(
        prog="deeplab suspects",
        description="Rank the regions of the held-out images whose labels are contradicted by the networks that were "
        "not trained on them. Writes a page with crops (suspects.html), tables (suspects.csv, suspect_images.csv) and "
        "the proposed labels for annotation tools (suspects.json, COCO).",
    )
    _add_out_of_fold_options(parser)
    parser.add_argument("--limit", type=int, default=100, help="number of regions that are written (100)")
    parser.add_argument("--min_area", type=int, default=50, help="pixels of the smallest region (50)")
    parser.add_argument("--output", type=Path, help="folder to write to (suspects in the folder of the experiment)")
    return parser


def calibrate_parser() -> OptionParser:
    """Build the parser of `deeplab calibrate`."""
    parser = OptionParser(
        prog="deeplab calibrate",
        description="Fit the temperature that makes the probabilities of the held-out images agree with the share of "
        "pixels that are right. Writes calibration.json, for `deeplab predict --temperature`, with the expected "
        "calibration error before and after, cross-fitted by folds, and calibration.png, to the folder of the "
        "experiment.",
    )
    _add_out_of_fold_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of pixels (0)")
    return parser


def _add_out_of_fold_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that predict the held-out images of an experiment."""
    parser.add_argument("folder", metavar="RUN_OR_EXPERIMENT", type=Path, help="folder of a run or an experiment")
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP.replace("checkpoint names", "run names"))


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


def split_parser() -> OptionParser:
    """Build the parser of `deeplab split`."""
    parser = OptionParser(
        prog="deeplab split",
        description="Assign the images to folds without training, and show how even the folds are. Writes folds.csv "
        "(image, group, fold), which `data.fold_file` reads; balance.csv and balance.json (per fold and class: images, "
        "objects, area and their deviations); and balance.png (the deviations of this split and of other methods). "
        + _OF_DATA,
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--compare", action="store_true", help="also print the figures of the other methods")
    return parser


def benchmark_parser() -> OptionParser:
    """Build the parser of `deeplab benchmark`."""
    parser = OptionParser(
        prog="deeplab benchmark",
        description="Measure models at the configuration's crop size, batch size, precision and memory format. Writes "
        "benchmark.csv, benchmark.json and, with --runs, benchmark.png (mIoU against cost). "
        + _OF_FIT
        + ", such as `--model.net.init_args.output_stride 8`.",
    )
    parser.add_argument("-c", "--config", action="append", default=[], help="configuration file; later ones override")
    parser.add_argument("--backbones", help="comma-separated backbones to measure instead of the configuration's")
    parser.add_argument(
        "--runs", nargs="+", default=[], help="folders of finished runs to measure, and to plot by mIoU and cost"
    )
    parser.add_argument("--repeats", type=int, default=5, help="steps per measurement, after one to warm up (5)")
    parser.add_argument("--output", default="runs/bench", help="folder to write to (runs/bench)")
    return parser


def export_parser() -> OptionParser:
    """Build the parser of `deeplab export`."""
    parser = OptionParser(
        prog="deeplab export",
        description="Write the network of a checkpoint, including what its images go through before, as one file. "
        "The file takes any batch size, height and width, and holds classes, colours, mean, standard deviation and "
        "evaluation size in its metadata. It is loaded again and compared with the network before it replaces an older "
        "file.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a training; its data are not needed")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="format of the file: ONNX, OpenVINO (an .xml file with a .bin file) or torch.export (onnx)",
    )
    parser.add_argument("--output", required=True, help="file to write, such as model.onnx, model.xml or model.pt2")
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
    parser.add_argument("--argmax", action="store_true", help="return (B, H, W) uint8 labels instead of logits")
    parser.add_argument(
        "--int8",
        metavar="IMAGES",
        help="compute with integers of 8 bits, whose ranges are those on up to 64 images of this folder, best some of "
        "the training; ONNX alone",
    )
    parser.add_argument(
        "--preprocess",
        choices=PLACES,
        default="graph",
        help="place of the preprocessing: graph takes uint8 RGB in 0-255 of any size and shrinks it to the evaluation "
        "size; metadata takes normalised floats of that size, and describes both (graph)",
    )
    parser.add_argument(  # the option of version 0.1.0
        "--no_preprocessing", action="store_const", dest="preprocess", const="metadata", help=argparse.SUPPRESS
    )
    return parser


def tune_crf_parser() -> OptionParser:
    """Build the parser of `deeplab tune-crf`."""
    parser = OptionParser(
        prog="deeplab tune-crf",
        description="Find w1, sigma_alpha and sigma_beta of the dense CRF that give a checkpoint the highest mIoU. "
        "Tries a coarse grid, then finer steps around its best, on a random part of the validation images. Prints mIoU "
        "and boundary IoU with and without the CRF there, and on as many other validation images if there are any. "
        "Writes crf.yaml, for `-c` of test and predict, and crf.csv to the run's folder. All other options are those "
        "of `deeplab validate`.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint, such as runs/<name>/checkpoints/best.ckpt")
    parser.add_argument("--num_images", type=int, default=20, help="number of validation images to tune on (20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images (0)")
    return parser


def tune_lr_parser() -> OptionParser:
    """Build the parser of `deeplab tune-lr`."""
    parser = OptionParser(
        prog="deeplab tune-lr",
        description="Train some steps on one device while the learning rate rises, and suggest the rate at which the "
        "loss falls fastest. Writes tune_lr.csv and tune_lr.png. " + _OF_FIT + ".",
        allow_abbrev=False,
    )
    parser.add_argument("--min_lr", type=float, default=1e-6, help="first learning rate of the optimiser (1e-6)")
    parser.add_argument("--max_lr", type=float, default=0.1, help="last learning rate (0.1)")
    parser.add_argument("--steps", type=int, default=100, help="number of optimiser steps between them (100)")
    parser.add_argument("--output", default="runs/tune_lr", help="folder to write to (runs/tune_lr)")
    return parser


def synthetic_parser() -> OptionParser:
    """Build the parser of `deeplab data synthetic`."""
    parser = OptionParser(
        prog="deeplab data synthetic",
        description="Write the built-in data set: scenes of overlapping litter with COCO annotations.",
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--num_images", type=int, default=200, help="number of images (200)")
    parser.add_argument("--size", type=int, default=256, help="height and width of the images in pixels (256)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (0)")
    return parser


def init_parser() -> OptionParser:
    """Build the parser of `deeplab data init`."""
    parser = OptionParser(
        prog="deeplab data init",
        description="Write a commented configuration for the data in a folder: COCO JSON files, or folders of images "
        "and masks. Every file is read once. What cannot be understood is named, and no file is overwritten.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of the data; it stands in the configuration as typed")
    parser.add_argument("--output", metavar="CONFIG", help="file to write (FOLDER's name with .yaml, where you are)")
    return parser


def check_parser() -> OptionParser:
    """Build the parser of `deeplab data check`, for its help; `datasets_from_args` parses its options."""
    parser = OptionParser(
        prog="deeplab data check",
        description="Read every image and mask once, and print classes, remarks, all problems and warnings. Labels are "
        "wrong where there is a problem, and may be wrong where there is a warning. " + _OF_DATA,
    )
    parser.add_argument("-c", "--config", action="append", help="configuration file; later ones override")
    return parser


def show_parser() -> OptionParser:
    """Build the parser of `deeplab data show`."""
    parser = OptionParser(
        prog="deeplab data show",
        description="Write a page that shows the data before training: images with masks, a batch, classes, sizes, "
        "folds, warnings. " + _OF_DATA,
    )
    parser.add_argument("--output", required=True, help="folder to write index.html and its pictures to")
    return parser


PARSERS: dict[str, Callable[[], OptionParser]] = {
    "tune-crf": tune_crf_parser,
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
    "split": split_parser,
    "benchmark": benchmark_parser,
    "export": export_parser,
    "data synthetic": synthetic_parser,
    "data init": init_parser,
    "data check": check_parser,
    "data show": show_parser,
}
