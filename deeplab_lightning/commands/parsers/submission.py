"""Build the parsers of the commands that use the networks of an experiment."""

import argparse
from pathlib import Path

from deeplab_lightning.commands.parsers.parser import TRUST_HELP, OptionParser


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
        "them (ImageId, ClassId, EncodedPixels; without ClassId all are of class 1)",
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
