"""Declare the options of `fit`, `validate`, `test` and `predict` besides those of the classes that they build."""

from typing import Literal

from lightning.pytorch.cli import LightningArgumentParser

from deeplab_lightning.commands.parsers.parser import TRUST_HELP
from deeplab_lightning.inference.engines import EngineName
from deeplab_lightning.tracking.loggers import LoggerName
from deeplab_lightning.tracking.mode import WandbMode


def add_run_options(parser: LightningArgumentParser) -> None:
    """Add the options of the run's folder and of W&B."""
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
    parser.add_argument(
        "--loggers",
        type=LoggerName | list[LoggerName],
        default=[],
        help="What a training logs to besides W&B: tensorboard, csv, mlflow, or a list of them.",
    )


def add_evaluation_options(parser: LightningArgumentParser, command: str) -> None:
    """Add the options of how images are evaluated and what is written of them.

    Args:
        parser: The parser of the command.
        command: `validate`, `test` or `predict`.
    """
    if command == "predict":
        parser.add_argument(
            "--images",
            type=list[str] | str | None,
            default=None,
            help="Folder, image file, video (extra video) or .txt list to predict, or a list of them: '[a, b.jpg]'.",
        )
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="Folder of the predictions; in the run's folder if null.",
        )
        _add_outputs(parser)
    _add_computation(parser)
    if command in {"validate", "test"}:
        parser.add_argument(
            "--calibration",
            type=str | None,
            default=None,
            help="JSON file to write the temperature of the evaluated probabilities to, also of an average of networks "
            "and views, for `predict --temperature`.",
        )
    if command in {"test", "predict"}:
        _add_averages(parser)


def _add_computation(parser: LightningArgumentParser) -> None:
    """Add the options of how the probabilities of an image are computed."""
    parser.add_argument(
        "--tta",
        type=str | None,
        default=None,
        help="Views whose probabilities are averaged: flip, scales=[0.75,1,1.25], or both with a comma.",
    )
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
    parser.add_argument(
        "--engine",
        type=EngineName,
        default="torch",
        help="What computes the network on a CPU: torch, openvino (the fastest; extra openvino) or onnx (ONNX Runtime; "
        "extra export). An engine takes seconds to start, and in fp32 it finds the labels of torch to rounding; bf16 "
        "changes 2 in 1,000, by torch too.",
    )
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


def _add_averages(parser: LightningArgumentParser) -> None:
    """Add the options of averages of several networks, and of the regions that are kept of their labels."""
    parser.add_argument(
        "--ensemble",
        type=list[str] | None,
        default=None,
        help="Further checkpoints or exported files whose probabilities are averaged: '[b.ckpt, c.onnx]'. "
        "--experiment FOLDER, instead of --ckpt_path, takes the best of all folds of an experiment.",
    )
    parser.add_argument(
        "--ensemble_weights",
        type=list[float] | None,
        default=None,
        help="Weights of --ckpt_path and the checkpoints of --ensemble in the mean: '[2, 1]'. Equal if null.",
    )
    parser.add_argument(
        "--min_area",
        type=str | None,
        default=None,
        help="Pixels of the smallest region that is kept: 64, or bottle=64,can=20 for these classes alone. A "
        "smaller one gets the class with which it shares the longest border.",
    )


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
        "--temperature",
        type=str | None,
        default=None,
        help="Temperature of both: a calibration.json that `deeplab calibrate` or `test --calibration` wrote for the "
        "same average, or a number such as 1.5. It changes no label.",
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
