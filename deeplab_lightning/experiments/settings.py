"""Find the settings that a result depends on and that differ between two configurations."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from deeplab_lightning.class_paths import canonical

MACHINE_KEYS = ("accelerator", "devices", "strategy", "num_nodes", "sync_batchnorm")
"""Trainer settings that describe the machine rather than the training."""
HASH_LENGTH = 6
_OF_THE_RUN = ("wandb", "output_dir", "name", "ckpt_path")
_OF_SHOWING = ("enable_progress_bar", "logger", "callbacks")
_OF_LOADING = ("fold", "fold_file", "num_workers", "cache", "eval_batch_size")


def setting_differences(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of each setting that differs, by dotted key.

    Args:
        base: Resolved configuration of `fit`.
        own: Another one. A newer version may know more keys, which are left out.
    """
    return dict(_leaves(canonical(_of_training(base)), canonical(_of_training(own))))


def settings_hash(config: Mapping[str, Any]) -> str:
    """Make six hexadecimal digits from the settings that a result depends on.

    Args:
        config: Resolved configuration of `fit`.
    """
    text = json.dumps(canonical(_of_training(config)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _of_training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a result depends on."""
    kept = {key: value for key, value in config.items() if key not in _OF_THE_RUN}
    for part, left_out in (("trainer", (*MACHINE_KEYS, *_OF_SHOWING)), ("data", _OF_LOADING)):
        if isinstance(kept.get(part), Mapping):
            kept[part] = {key: value for key, value in kept[part].items() if key not in left_out}
    return kept


def _leaves(base: Any, own: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield key and both values of the settings that differ."""
    if isinstance(base, Mapping) and isinstance(own, Mapping):
        for key in sorted(base.keys() & own.keys()):
            yield from _leaves(base[key], own[key], f"{prefix}.{key}" if prefix else str(key))
    elif base != own:
        yield prefix, (base, own)
