"""Read options from a command line as it was typed, before or beside a full parser."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from deeplab_lightning.data.config import read_config


def option(args: Sequence[str], *names: str) -> str | None:
    """Return the last value of an option, given as `--option value` or `--option=value`; None if it is missing."""
    return next(reversed(options(args, *names)), None)


def options(args: Sequence[str], *names: str) -> list[str]:
    """Return all values of an option, in order."""
    found = []
    for index, word in enumerate(args):
        for name in names:
            if word == name and index + 1 < len(args):
                found.append(args[index + 1])
            elif word.startswith(f"{name}="):
                found.append(word.removeprefix(f"{name}="))
    return found


def check_configs(args: Sequence[str]) -> None:
    """Check that every file named by `-c` is a readable configuration.

    The parser would find the same mistakes later, and name no file.

    Args:
        args: The options as typed.

    Raises:
        FileNotFoundError: If a configuration file does not exist.
        ValueError: If a file is not YAML, or not a mapping.
    """
    for value in options(args, "-c", "--config"):
        if not _is_read_by_parser(value):
            read_config(Path(value))


def without_empty_configs(args: Sequence[str]) -> list[str]:
    """Return options without the `-c` of files that set nothing, as all lines are comments; the parser refuses them.

    Args:
        args: The options as typed, with files that `check_configs` has read.
    """
    kept: list[str] = []
    words = iter(args)
    for word in words:
        name, _, joined = word.partition("=")
        is_config = name in {"-c", "--config"}
        value = joined if "=" in word else next(words, None) if is_config else None
        if is_config and value is not None and _is_empty(value):
            continue
        kept += [word] if value is None or "=" in word else [word, value]
    return kept


def _is_empty(value: str) -> bool:
    return not _is_read_by_parser(value) and Path(value).is_file() and not read_config(Path(value))


def _is_read_by_parser(value: str) -> bool:
    """Check whether a value is standard input, an address or the configuration itself instead of a local file."""
    if value == "-" or "://" in value:
        return True
    try:
        return isinstance(yaml.safe_load(value), dict)
    except yaml.YAMLError:
        return False
