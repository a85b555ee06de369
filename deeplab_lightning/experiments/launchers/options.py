"""Read which launcher starts the trainings, and with which options."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from deeplab_lightning.errors import MissingFileError, UserError

_NOTHING = ("", "null", "~")


@dataclass(frozen=True)
class SlurmOptions:
    """Hold what a training asks SLURM for.

    Attributes:
        partition: Partition; that of the cluster if None.
        account: Account that pays; the user's own if None.
        time: Time limit as SLURM writes it, such as `4:00:00`, or minutes; that of the partition if None. A training
            that reaches it is saved, queued again and continued.
        gpus: GPUs of each training, at least 0.
        cpus: CPU cores of each training, at least 1.
        memory: Memory of each training, such as `32G`; that of the cluster if None.
        grace: Seconds before the time limit at which a training saves its state, at least 1.
        retries: Number of times that a training which was killed or lost starts again from its last checkpoint.
        lines: Further options of `sbatch`, such as `--qos=low`.
        setup: Shell commands that run on the node before the training, such as `module load cuda`.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus: int = 1
    cpus: int = 4
    memory: str | None = None
    grace: int = 120
    retries: int = 3
    lines: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class RayOptions:
    """Hold what a training asks Ray for.

    Attributes:
        address: Address of the cluster, such as `10.0.0.1:6379`; that of this machine if None.
        gpus: GPUs of each training, at least 0.
        cpus: CPU cores of each training, at least 1.
        retries: Number of times that a training which was killed or lost starts again from its last checkpoint.
    """

    address: str | None = None
    gpus: int = 1
    cpus: int = 4
    retries: int = 3


_KINDS: dict[str, type[SlurmOptions] | type[RayOptions] | None] = {
    "local": None,
    "slurm": SlurmOptions,
    "ray": RayOptions,
}
LAUNCHERS = tuple(_KINDS)
_LOWEST = {"gpus": 0, "cpus": 1, "grace": 1, "retries": 0}


def read_launcher(choice: str, changes: Mapping[str, str]) -> SlurmOptions | RayOptions | None:
    """Return the options of the chosen launcher; None for this machine.

    Args:
        choice: `local`, `slurm`, `ray`, or a YAML file with the key `launcher` and options.
        changes: Options that override those of the file, as texts.

    Raises:
        UserError: If the launcher or an option is unknown, or a value is wrong.
    """
    given: dict[str, Any] = {"launcher": choice}
    if choice not in LAUNCHERS:
        given = _read(choice)
    name = given.pop("launcher", None)
    if name not in LAUNCHERS:
        raise UserError(f"{choice}: launcher must be {' or '.join(LAUNCHERS)}, got {name!r}.")
    given |= {key: _parsed(f"--launcher.{key} {text}", text) for key, text in changes.items()}
    kind = _KINDS[name]
    known = set() if kind is None else {option.name for option in fields(kind)}
    if unknown := sorted(given.keys() - known):
        own = f"; it has {', '.join(sorted(known))}" if known else ", which has none"
        raise UserError(f"{choice}: unknown options {', '.join(unknown)} of the launcher {name}{own}.")
    return None if kind is None else kind(**{key: _value(key, value) for key, value in given.items()})


def _read(choice: str) -> dict[str, Any]:
    path = Path(choice)
    if path.suffix not in {".yaml", ".yml"}:
        raise UserError(
            f"--launcher must be {', '.join(LAUNCHERS)}, or a file such as configs/launcher/slurm.yaml, got {choice!r}."
        )
    if not path.is_file():
        raise MissingFileError(f"no such launcher: {path.absolute()}")
    content = _parsed(choice, path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{choice}: must hold options such as 'launcher: slurm', got {content!r}.")
    return content


def _parsed(place: str, text: str) -> Any:
    """Parse YAML and leave its values texts, since YAML takes 4:00:00 for 14400, which SLURM takes for minutes."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{place}: is not YAML ({' '.join(str(error).split())}).") from error


def _value(key: str, value: Any) -> Any:
    """Return an option's value in its type."""
    if key in {"lines", "setup"}:
        entries = [] if value in _NOTHING else value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) and "\n" not in entry for entry in entries):
            raise UserError(f"launcher.{key} must be a list of single lines, got {value!r}.")
        return tuple(entries)
    if not isinstance(value, str):
        raise UserError(f"launcher.{key} must be one value, got {value!r}.")
    if key not in _LOWEST:
        return None if value in _NOTHING else value
    if not value.isdecimal() or int(value) < _LOWEST[key]:
        raise UserError(f"launcher.{key} must be a whole number of at least {_LOWEST[key]}, got {value!r}.")
    return int(value)
