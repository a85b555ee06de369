"""The data part of a configuration -> a datamodule, without a model."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from deeplab_lightning.data.datamodule import SegmentationDataModule

DATASETS = ("dataset", "val_dataset", "test_dataset")


def build_datamodule(args: list[str], program: str, *, has_all_files: bool = False) -> SegmentationDataModule:
    """The data part of the configs.

    Args:
        args: `-c CONFIG ...` and overrides of the data part.
        program: What the help calls this command.
        has_all_files: Whether bad files raise; else they are collected in the data sets' `problems`.
    """
    options = argparse.ArgumentParser(prog=program)
    options.add_argument("-c", "--config", action="append", default=[], help="a config; only its data part is read")
    given, overrides = options.parse_known_args(args)
    parser = ArgumentParser(prog=program)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(SegmentationDataModule, "data", sub_configs=True)
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch:
        words = []
        for number, config in enumerate(given.config):
            if not Path(config).is_file():
                raise FileNotFoundError(f"no such config: {Path(config).absolute()}")
            content: dict[str, Any] = yaml.safe_load(Path(config).read_text()) or {}
            part = Path(scratch) / f"{number}.yaml"
            part.write_text(yaml.safe_dump({"data": content.get("data", {})}))
            words += ["--config", str(part)]
        parsed = parser.parse_args([*words, *overrides])
    for key in DATASETS:
        if parsed.data.get(key) is not None and not has_all_files:
            parsed.data[key].init_args.on_error = "skip"
    datamodule: SegmentationDataModule = parser.instantiate_classes(parsed).data
    return datamodule
