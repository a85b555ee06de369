"""Build the parsers of the commands that look at data."""

from deeplab_lightning.commands.parsers.parser import OF_DATA, OptionParser


def split_parser() -> OptionParser:
    """Build the parser of `deeplab split`."""
    parser = OptionParser(
        prog="deeplab split",
        description="Assign the images to folds without training, and show how even the folds are. Writes folds.csv "
        "(image, group, fold), which `data.fold_file` reads; balance.csv and balance.json (per fold and class: images, "
        "objects, area and their deviations); and balance.png (the deviations of this split and of other methods). "
        + OF_DATA,
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--compare", action="store_true", help="also print the figures of the other methods")
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
        "wrong where there is a problem, and may be wrong where there is a warning. " + OF_DATA,
    )
    parser.add_argument("-c", "--config", action="append", help="configuration file; later ones override")
    return parser


def show_parser() -> OptionParser:
    """Build the parser of `deeplab data show`."""
    parser = OptionParser(
        prog="deeplab data show",
        description="Write a page that shows the data before training: images with masks, a batch, classes, sizes, "
        "folds, warnings. " + OF_DATA,
    )
    parser.add_argument("--output", required=True, help="folder to write index.html and its pictures to")
    return parser
