"""Choose the folds of a run: those of the checkpoint or of the configuration that it starts from."""

from pathlib import Path

import yaml
from jsonargparse import Namespace

from deeplab_lightning.class_paths import canonical
from deeplab_lightning.runs import RunFolder

_SPLIT_KEYS = ("dataset", "split", "n_folds", "split_seed", "fold_method", "groups", "fold_file")


def keep_folds(config: Namespace, text: str) -> None:
    """Use the folds of the checkpoint's own run, unless data or split have changed.

    A new split would move images to other folds if an image was added since, and the validation would then hold
    images of the training.

    Args:
        config: The configuration, which is changed.
        text: The same as YAML.
    """
    if config.ckpt_path is None or config.data.dataset is None:
        return
    own = RunFolder.of_checkpoint(config.ckpt_path)
    if own is None or config.data.split != "folds" or not own.folds.is_file():
        return
    now, then = yaml.safe_load(text)["data"], own.read_config().get("data", {})
    if all(canonical(now[key]) == canonical(then.get(key)) for key in _SPLIT_KEYS):
        config.data.fold_file = str(own.folds)


def take_own_folds(config: Namespace) -> None:
    """Use the folds beside a run's `config.yaml` where the file that it names is gone or holds other folds today.

    It names the `folds.csv` of its own folder, which may have been renamed, moved or copied since.

    Args:
        config: The configuration, which is changed.
    """
    for path in map(Path, filter(None, config.get("config") or ())):  # None for one on the command line
        own, named = RunFolder(path.parent), config.data.fold_file
        if named is None or path.name != own.config.name or not own.folds.is_file():
            continue
        given = (own.read_config().get("data") or {}).get("fold_file")
        is_from_here = Path(named).name == own.folds.name and given == named
        if is_from_here and not (Path(named).is_file() and Path(named).read_bytes() == own.folds.read_bytes()):
            print(f"Folds: {own.folds}, beside the configuration; {named} is not its file any more.", flush=True)
            config.data.fold_file = str(own.folds)
