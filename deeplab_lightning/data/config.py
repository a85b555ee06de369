"""Build a datamodule from the data part of a configuration, without a model."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.data.datasets import SegmentationDataset
from deeplab_lightning.data.image_format import ImageFormat
from deeplab_lightning.data.problems import OnError
from deeplab_lightning.errors import MissingFileError, UserError, unwrapped
from deeplab_lightning.list_overrides import ListOverrides
from deeplab_lightning.usage import OneLineUsage

DATASETS = ("dataset", "val_dataset", "test_dataset")


class _OptionParser(OneLineUsage, argparse.ArgumentParser):
    """Parse the names of configuration files; a wrong command line is reported in one line."""


class _DataParser(ListOverrides, OneLineUsage, ArgumentParser):
    """Parse the data part of a configuration; a wrong key or type is reported in one line."""


def datamodule_from_config(data: Mapping[str, Any], *, on_error: OnError | None = None) -> SegmentationDataModule:
    """Build the datamodule that a resolved configuration describes.

    Args:
        data: The `data` part, such as `config["data"]`.
        on_error: Setting that overrides the data sets' own `on_error`: `raise` stops at faulty files, `skip`
            collects them in `problems`.
    """
    parser = _parser("deeplab")
    return _build(parser, parser.parse_object({"data": dict(data)}), on_error)


def datamodule_from_args(
    args: Sequence[str], program: str, *, on_error: OnError | None = None
) -> SegmentationDataModule:
    """Build the datamodule that a command line describes.

    Args:
        args: Options `-c CONFIG`, of which only the data part is read, and `--data.*`, which override it.
        program: Name of the command in the help text.
        on_error: Setting that overrides the data sets' own `on_error`, see `datamodule_from_config`.

    Raises:
        FileNotFoundError: If a configuration file does not exist.
        SystemExit: With code 2, if a key or a type is wrong.
    """
    parser, data = _parsed(args, program)
    return _build(parser, Namespace(data=data), on_error)


def _parsed(args: Sequence[str], program: str) -> tuple[_DataParser, Namespace]:
    """Parse a command line, and return the parser with the data part that it describes."""
    options = _OptionParser(prog=program, allow_abbrev=False)
    options.add_argument(
        "-c", "--config", action="append", default=[], help="a configuration file, of which only the data part is read"
    )
    parser = _parser(program)
    given, overrides = options.parse_known_args(parser.lists_as_configs(args))
    parsed = parser.get_defaults()
    for config in given.config:
        content = yaml.safe_load(config) if config.startswith("{") else read_config(Path(config))
        parsed = parser.parse_object({"data": content.get("data") or {}}, namespace=parsed)
    if isinstance(parsed.data.image_format, Namespace):  # of which an option could not change a single key
        parsed.data.image_format = parsed.data.image_format.as_dict()
    return parser, parser.parse_args(overrides, namespace=parsed).data


def datasets_from_args(args: Sequence[str], program: str) -> Iterator[tuple[str, SegmentationDataset | UserError]]:
    """Build the data sets that a command line describes one by one, each with `on_error: skip`.

    Args:
        args: Options as for `datamodule_from_args`.
        program: Name of the command in the help text.

    Yields:
        The key of each data set, such as `data.dataset`, and the data set, or the error for which there is none.
    """
    _, data = _parsed(args, program)
    parser = _DataParser(prog=program)
    parser.add_subclass_arguments(SegmentationDataset, "data")
    for key, setting in _dataset_settings(data):
        setting.init_args.on_error = "skip"
        try:
            dataset: SegmentationDataset = parser.instantiate(Namespace(data=setting)).data
            dataset.image_format = ImageFormat(**(data.get("image_format") or {}))
            yield f"data.{key}", dataset
        except Exception as error:
            cause = unwrapped(error)
            if not isinstance(cause, UserError):
                raise
            yield f"data.{key}", cause


def _dataset_settings(data: Namespace) -> Iterator[tuple[str, Namespace]]:
    """Yield the settings of each data set by its key."""
    yield from ((key, data[key]) for key in DATASETS if data.get(key) is not None)
    yield from ((f"extra_datasets[{number}]", own) for number, own in enumerate(data.get("extra_datasets") or []))


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML configuration file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not YAML, or not a mapping.
    """
    if not path.is_file():
        raise MissingFileError(f"no such config: {path.absolute()}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # YAML's own, text, and dates and numbers
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path} must map keys to values, as configs/base.yaml does, got a {type(content).__name__}.")
    return content or {}


def _parser(program: str) -> _DataParser:
    """Build a parser with the options of the datamodule below `data`."""
    parser = _DataParser(prog=program)
    parser.add_class_arguments(SegmentationDataModule, "data", sub_configs=True)
    return parser


def _build(parser: ArgumentParser, parsed: Namespace, on_error: OnError | None) -> SegmentationDataModule:
    """Instantiate the datamodule, with `on_error` in all its data sets if given."""
    for _, setting in _dataset_settings(parsed.data):
        if on_error is not None:
            setting.init_args.on_error = on_error
    datamodule: SegmentationDataModule = parser.instantiate(parsed).data
    return datamodule
