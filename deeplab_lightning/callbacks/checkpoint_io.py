"""Checkpoints that a kill or a full disk cannot damage."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from deeplab_lightning.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint, then renames: there is always a whole one to resume from."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


class RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its best epoch again after the run's folder was moved.

    Lightning forgets it where the folder has another name, and the next epoch, however bad, would replace
    `best.ckpt`.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over, with paths in the present folder if the files are there."""
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
