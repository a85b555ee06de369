"""Read where the folds of `kfold` and `grid` train."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.launchers.options import RayOptions, SlurmOptions, read_launcher

_PREFIX = "--launcher."


@dataclass(frozen=True)
class Placement:
    """Hold where folds train, and how many at once.

    Attributes:
        slurm: What each fold asks SLURM for; None if they train elsewhere.
        ray: What each fold asks Ray for; None if they train elsewhere. Without both, they train on this machine.
        at_once: Number of folds that train at once, at least 1; all if None, on a cluster alone.
        devices: Indices of the GPUs of this machine that the folds share.
        is_in_process: Whether they train in this process.
        is_detached: Whether nobody waits for the queue.
    """

    slurm: SlurmOptions | None
    at_once: int | None
    devices: Sequence[str] = ()
    is_in_process: bool = False
    is_detached: bool = False
    ray: RayOptions | None = None

    @classmethod
    def parse(cls, given: argparse.Namespace, rest: Sequence[str]) -> "tuple[Placement, list[str]]":
        """Take the options of the launcher out of a command line.

        Args:
            given: Options of `kfold` or `grid`.
            rest: All other words.

        Returns:
            The placement, and the words that are left.

        Raises:
            UserError: If an option is unknown, wrong, or has no meaning for the launcher.
        """
        changes, words = _own_options(rest)
        options = read_launcher(given.launcher, changes)
        if given.jobs is not None and given.jobs < 1:
            raise UserError(f"--jobs must be at least 1, got {given.jobs}.")
        if given.detach and not isinstance(options, SlurmOptions):
            raise UserError(
                "--detach leaves the folds in a cluster's queue, so it needs --launcher slurm. Elsewhere they end with "
                "this command: start it in the background, by nohup deeplab ... & or in tmux, and --resume if it ends."
            )
        if options is None:
            devices = tuple(given.devices.split(",")) if given.devices else ()
            return cls(None, given.jobs or 1, devices, given.in_process), words
        if given.devices:
            raise UserError(
                "--devices chooses among the GPUs of this machine; a cluster deals its own: --launcher.gpus."
            )
        if given.in_process:
            raise UserError("--in_process trains here, and a cluster elsewhere; leave out that or --launcher.")
        if isinstance(options, RayOptions):
            return cls(None, given.jobs, ray=options), words
        return cls(options, given.jobs, is_detached=given.detach), words

    @property
    def is_elsewhere(self) -> bool:
        """Whether the folds train on a cluster."""
        return self.slurm is not None or self.ray is not None

    def refuse_several_nodes(self, config: Mapping[str, Any]) -> None:
        """Refuse a fold that trains on several nodes, since its job in the queue gets one.

        Args:
            config: Resolved configuration of `fit`.

        Raises:
            UserError: If there are several.
        """
        nodes = config["trainer"].get("num_nodes", 1)
        if self.is_elsewhere and nodes != 1:
            raise UserError(
                f"trainer.num_nodes must be 1 on a cluster, got {nodes}: each fold gets one node. Start a training on "
                "several nodes yourself: srun deeplab fit ..."
            )


def _own_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate `--launcher.KEY VALUE` and `--launcher.KEY=VALUE` from the other words."""
    found, others = {}, []
    rest = iter(words)
    for word in rest:
        if not word.startswith(_PREFIX):
            others.append(word)
            continue
        key, equals, value = word.removeprefix(_PREFIX).partition("=")
        if not equals and (value := next(rest, "")) == "":
            raise UserError(f"{word} needs a value.")
        found[key] = value
    return found, others
