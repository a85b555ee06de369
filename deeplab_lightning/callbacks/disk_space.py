"""Stop a training before its first step if its checkpoints will not fit on the disk."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.runs import RunFolder


class DiskSpace(L.Callback):
    """Compare what the checkpoints of a training will need at least with what is free on its disk.

    A fold of an experiment counts those of the other folds too. Weights and the states of SGD and Adam are known;
    an optimiser of another kind counts as without state.

    Raises:
        RuntimeError: On the first process, if too little is free; the others end with it.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise an error if too little is free."""
        num_files = sum(map(_num_files, trainer.checkpoint_callbacks))
        if not trainer.is_global_zero or trainer.fast_dev_run or not num_files:  # type: ignore[attr-defined]
            return
        run = RunFolder(trainer.default_root_dir)
        size = _num_bytes(pl_module.state_dict().values()) + sum(map(_state_bytes, trainer.optimizers))
        runs = (
            [RunFolder(path.parent) for path in run.path.parent.glob(f"*/{run.job.name}")] if run.job.is_file() else []
        )
        missing = sum(max(num_files * size - _written(other.checkpoints), 0) for other in runs or [run])
        needed, free = missing + size, shutil.disk_usage(run.path).free  # a file is complete before it replaces another
        if needed > free:
            raise UnavailableError(
                f"{run.path.absolute()}: the checkpoints need {needed / 1e9:.3g} GB more "
                f"(files of {size / 1e9:.3g} GB), but only {free / 1e9:.3g} GB are free. "
                "Free space, or set --output_dir to another disk."
            )


def _num_files(callback: object) -> int:
    """Return how many files a callback keeps at least."""
    if not isinstance(callback, ModelCheckpoint):
        return 0
    return max(callback.save_top_k, 1) * (callback.save_top_k != 0) + bool(callback.save_last)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the size of the tensors that an optimiser keeps beside the trained weights."""
    copies = 2 if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) else 0
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    return sum(
        _num_bytes(weight for weight in group["params"] if weight.requires_grad)
        * (bool(group["momentum"]) if is_sgd else copies)
        for group in optimizer.param_groups
    )


def _written(folder: Path) -> int:
    """Return the size of the checkpoints in a folder, which new ones replace."""
    return sum(path.stat().st_size for path in folder.glob("*.ckpt"))
