"""Describe where a result comes from: data, versions, commit, command and time."""

import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

import deeplab_lightning
from deeplab_lightning.data.datamodule import SegmentationDataModule

_GIT_SECONDS = 5.0


def describe_data(trainer: L.Trainer) -> dict[str, Any]:
    """Describe the images that a trainer works on: source, number, fold, and a digest of images and labels."""
    datamodule = getattr(trainer, "datamodule", None)
    unknown = {"dataset": None, "num_images": None, "fold": None, "n_folds": None}
    if not isinstance(datamodule, SegmentationDataModule):
        return unknown
    if trainer.state.fn == TrainerFn.TESTING and (tested := datamodule.test_dataset) is not None:
        return {**unknown, "dataset": tested.source, "num_images": len(tested)}
    if datamodule.dataset is None:
        return unknown
    is_folded = datamodule.split == "folds"
    return {
        "dataset": datamodule.dataset.source,
        "num_images": len(datamodule.dataset) + (len(datamodule.val_dataset or ()) if not is_folded else 0),
        "fold": datamodule.fold if is_folded else None,
        "n_folds": datamodule.n_folds if is_folded else None,
        "data_digest": datamodule.data_digest,
    }


def versions() -> dict[str, str]:
    """Return the versions of what a training depends on."""
    return {
        "deeplab_lightning": deeplab_lightning.__version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }


def describe_program() -> dict[str, Any]:
    """Return the command of this process, the commit of the package if it lies in a checkout, and the time."""
    return {
        "command": shlex.join(["deeplab", *sys.argv[1:]]),
        "commit": _commit(Path(deeplab_lightning.__file__).parents[1]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit(root: Path) -> str | None:
    """Return the commit of a checkout, with a plus sign if its files were changed; None without one."""
    if not (root / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        words = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
        return done.stdout.strip() or None
    return None
