"""Save and restore checkpoints safely when a process is killed or a folder is moved."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from deeplab_lightning.callbacks.divergence import is_finite
from deeplab_lightning.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write each checkpoint to a temporary file and rename it, so that a complete one exists at any time."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint atomically; remote paths such as `s3://` are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


class RunCheckpoint(ModelCheckpoint):
    """Keep the best epoch known after the run's folder was moved, and never save weights that are not finite.

    Lightning's ModelCheckpoint drops the best score if the folder has another path. The next epoch, however bad,
    would then replace `best.ckpt`.
    """

    def save_now(self, trainer: L.Trainer) -> None:
        """Save a checkpoint under the plain file name; all processes must call it."""
        self._save_checkpoint(trainer, str(Path(self.dirpath or "") / f"{self.filename}{self.FILE_EXTENSION}"))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if trainer.strategy.reduce_boolean_decision(is_finite(trainer.lightning_module)):
            super()._save_checkpoint(trainer, filepath)
        else:
            rank_zero_warn(f"The weights are not finite: {filepath} is not written.")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with paths changed to the current folder if it holds the files."""
        best = Path(state_dict.get("best_model_path") or "")
        here = Path(self.dirpath or "")
        if best.name and state_dict.get("dirpath") != self.dirpath and (here / best.name).is_file():
            state_dict = dict(state_dict)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                if path := state_dict.get(key):
                    state_dict[key] = str(here / Path(path).name)
            best_k = state_dict.get("best_k_models", {})
            state_dict["best_k_models"] = {str(here / Path(path).name): score for path, score in best_k.items()}
            state_dict["dirpath"] = self.dirpath
        super().load_state_dict(state_dict)


class TopCheckpoint(RunCheckpoint):
    """Keep several of the best epochs beside `best.ckpt`, each in a file of its own name."""


def name_with_score(monitor: str | None) -> str:
    """Return the template of a file name with epoch (from 0), optimiser step and score.

    Args:
        monitor: Key of the score, such as `val/miou`; None for a name without score.
    """
    score = f"-{monitor.replace('/', '_')}={{{monitor}:.4f}}" if monitor else ""
    return f"epoch={{epoch:03d}}-step={{step}}{score}"
