"""Build the parsers of the commands that measure, tune and export a network."""

import argparse

from deeplab_lightning.commands.parsers.parser import OF_FIT, TRUST_HELP, OptionParser

# Formats of exported files, and places of their preprocessing.
FORMATS = ("onnx", "openvino", "torch_export")
PLACES = ("graph", "metadata")


def benchmark_parser() -> OptionParser:
    """Build the parser of `deeplab benchmark`."""
    parser = OptionParser(
        prog="deeplab benchmark",
        description="Measure models at the configuration's crop size, batch size, precision and memory format. Writes "
        "benchmark.csv, benchmark.json and, with --runs, benchmark.png (mIoU against cost). "
        + OF_FIT
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
        help="format of the file (that of its ending)",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="file to write: model.onnx, model.xml of OpenVINO, which has a .bin file beside it, or model.pt2 of "
        "torch.export",
    )
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


def tune_batch_parser() -> OptionParser:
    """Build the parser of `deeplab tune-batch`."""
    parser = OptionParser(
        prog="deeplab tune-batch",
        description="Train some steps on one device with batches of 1, 2, 4, ... images until they do not fit into "
        "memory, and print images per second and memory of each size. Writes tune_batch.csv. " + OF_FIT + ".",
        allow_abbrev=False,
    )
    parser.add_argument("--max_batch_size", type=int, default=256, help="largest batch that is tried (256)")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps per batch size (8)")
    parser.add_argument("--output", default="runs/tune_batch", help="folder to write to (runs/tune_batch)")
    return parser


def tune_lr_parser() -> OptionParser:
    """Build the parser of `deeplab tune-lr`."""
    parser = OptionParser(
        prog="deeplab tune-lr",
        description="Train some steps on one device while the learning rate rises, and suggest the rate at which the "
        "loss falls fastest. Writes tune_lr.csv and tune_lr.png. " + OF_FIT + ".",
        allow_abbrev=False,
    )
    parser.add_argument("--min_lr", type=float, default=1e-6, help="first learning rate of the optimiser (1e-6)")
    parser.add_argument("--max_lr", type=float, default=0.1, help="last learning rate (0.1)")
    parser.add_argument("--steps", type=int, default=100, help="number of optimiser steps between them (100)")
    parser.add_argument("--output", default="runs/tune_lr", help="folder to write to (runs/tune_lr)")
    return parser
