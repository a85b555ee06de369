from pathlib import Path

import pytest
import torch

from deeplab_lightning.callbacks.checkpoint_io import AtomicCheckpointIO, RunCheckpoint


def best_of(folder: Path) -> RunCheckpoint:
    return RunCheckpoint(dirpath=str(folder), filename="best", monitor="val/miou", mode="max")


def test_a_moved_run_knows_its_best_epoch(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "best.ckpt").touch()
    old = best_of(tmp_path / "old")
    old.best_model_path = old.kth_best_model_path = str(tmp_path / "old" / "best.ckpt")
    old.best_model_score = old.kth_value = torch.tensor(0.7)
    old.best_k_models = {old.best_model_path: torch.tensor(0.7)}
    moved = best_of(tmp_path / "new")
    moved.load_state_dict(old.state_dict())
    assert moved.best_k_models == {str(tmp_path / "new" / "best.ckpt"): torch.tensor(0.7)}
    assert moved.best_model_score == torch.tensor(0.7)
    elsewhere = best_of(tmp_path / "third")  # another run that starts from the checkpoint has no best yet
    with pytest.warns(UserWarning, match="dirpath has changed"):
        elsewhere.load_state_dict(old.state_dict())
    assert elsewhere.best_k_models == {}


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle|local object"):
        io.save_checkpoint({"epoch": lambda: 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
