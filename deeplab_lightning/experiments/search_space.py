"""Read what `deeplab tune` searches: parameters with their values, written as in a W&B sweep."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab_lightning.data.config import read_config
from deeplab_lightning.errors import MissingFileError, UserError

_KEYS = {"name", "output_dir", "options", "num_trials", "min_epochs", "parameters"}
RANGES = ("uniform", "log_uniform_values", "int_uniform")
_FIXED = ("seed_everything", "data.seed", "data.split_seed", "data.fold", "data.n_folds", "trainer.max_epochs")
"""Settings that all trials share: their choice would choose luck, other images, or a longer training."""
_OF_THE_TRIAL = ("name", "output_dir", "ckpt_path", "wandb", "loggers", "config", "c")


@dataclass(frozen=True)
class Parameter:
    """Hold the values that one setting may have.

    Attributes:
        values: Values to choose from; empty for a range.
        distribution: `uniform`, `log_uniform_values` or `int_uniform`; empty for a list of values.
        low: Lowest value of a range.
        high: Highest value of a range.
    """

    values: tuple[Any, ...] = ()
    distribution: str = ""
    low: float = 0.0
    high: float = 0.0

    def extremes(self) -> tuple[Any, ...]:
        """Return the values that show whether all are allowed: those of the list, or both ends of the range."""
        return self.values or (self.low, self.high)


@dataclass(frozen=True)
class SearchSpace:
    """Hold the content of a search file.

    Attributes:
        name: Name of the search's folder, which holds a run's folder per trial.
        output_dir: Folder that holds the search's folder.
        options: Options of `deeplab fit` that all trials share.
        num_trials: Number of settings to try.
        min_epochs: Number of epochs that every trial trains.
        parameters: Key of `deeplab fit` -> its values.
    """

    name: str
    output_dir: str
    options: str
    num_trials: int
    min_epochs: int
    parameters: dict[str, Parameter]

    @classmethod
    def read(cls, path: Path) -> "SearchSpace":
        """Read and check a search file.

        Raises:
            MissingFileError: If the file does not exist.
            UserError: If it is not YAML, has unknown keys, or a parameter has no values.
        """
        if not path.is_file():
            raise MissingFileError(f"no such search: {path.absolute()}")
        content = read_config(path)
        if unknown := sorted(map(str, content.keys() - _KEYS)):
            raise UserError(f"{path}: unknown keys {unknown}; a search has {sorted(_KEYS)}.")
        parameters = content.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            raise UserError(f"{path}: parameters must map keys of `deeplab fit` to their values, got {parameters!r}.")
        if not isinstance(content.get("options"), str | None):
            raise UserError(f"{path}: options must be one text, such as '-c configs/base.yaml --seed_everything 1'.")
        return cls(
            name=str(content.get("name") or path.stem),
            output_dir=str(content.get("output_dir", "runs")),
            options=str(content.get("options") or ""),
            num_trials=_count(path, content, "num_trials", 20),
            min_epochs=_count(path, content, "min_epochs", 1),
            parameters={str(key): _parameter(path, str(key), value) for key, value in parameters.items()},
        )


def setting_options(values: Mapping[str, Any]) -> list[str]:
    """Return settings as options of `deeplab fit`.

    Args:
        values: Key -> value.
    """
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [word for key, text in texts.items() for word in (f"--{key}", text)]


def nested_settings(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return some settings of a configuration as nested mappings, for a file that overrides others.

    Args:
        config: Resolved configuration of `fit`.
        keys: Dotted keys as on the command line, where `init_args` may be left out.
    """
    found: dict[str, Any] = {}
    for key in keys:
        source, target = config, found
        *parents, last = key.split(".")
        for part in parents:
            source, target = _step(source, target, part)
            source, target = source[part], target.setdefault(part, {})
        source, target = _step(source, target, last)
        target[last] = source[last]
    return found


def _step(source: Mapping[str, Any], target: dict[str, Any], part: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Go down to the arguments of a class if a part of a key is one of them."""
    if part not in source and part in source.get("init_args", {}):
        return source["init_args"], target.setdefault("init_args", {})
    return source, target


def _count(path: Path, content: Mapping[str, Any], key: str, default: int) -> int:
    value = content.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(f"{path}: {key} must be a whole number of at least 1, got {value!r}.")
    return value


def _parameter(path: Path, key: str, given: Any) -> Parameter:
    """Check the values of one setting."""
    place = f"{path}: parameters.{key}"
    if key in (*_FIXED, *_OF_THE_TRIAL):
        raise UserError(f"{place} cannot be searched: all trials share it, so that they are compared fairly.")
    known = isinstance(given, dict) and given.keys() <= {"values", "distribution", "min", "max"}
    if known and given.keys() == {"values"} and isinstance(given["values"], list) and given["values"]:
        return Parameter(values=tuple(given["values"]))
    if not known or not {"min", "max"} <= given.keys() or "values" in given:
        raise UserError(
            f"{place} must have values: [...], or min and max, with distribution: {', '.join(RANGES)}; got {given!r}."
        )
    low, high = given["min"], given["max"]
    is_whole = type(low) is int and type(high) is int
    distribution = given.get("distribution", "int_uniform" if is_whole else "uniform")
    if distribution not in RANGES:
        raise UserError(f"{place}.distribution must be one of {', '.join(RANGES)}, got {distribution!r}.")
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (low, high))
    lowest_is_wrong = distribution == "log_uniform_values" and are_numbers and low <= 0
    if not are_numbers or not low < high or lowest_is_wrong or (distribution == "int_uniform" and not is_whole):
        wanted = "whole numbers" if distribution == "int_uniform" else "numbers"
        above = " above 0" if distribution == "log_uniform_values" else ""
        raise UserError(
            f"{place} must have {wanted} min < max{above}, got {low!r} and {high!r} (write 1e-4 as 1.0e-4)."
        )
    return Parameter(distribution=distribution, low=low, high=high)
