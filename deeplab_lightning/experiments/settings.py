"""Find the settings that a result depends on and that differ between two configurations."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deeplab_lightning.class_paths import canonical
from deeplab_lightning.data.digest import is_other_data

MACHINE_KEYS = ("accelerator", "devices", "strategy", "num_nodes", "sync_batchnorm")
"""Trainer settings that describe the machine rather than the training, unless its number of processes differs."""
PROCESSES = "trainer.devices x num_nodes"
"""Key under which another number of processes is reported, each of which adds its batch to every step."""
HASH_LENGTH = 6
DIGEST = "data.digest"
"""Key under which other images or labels are reported beside settings that differ."""
_PLACE = re.compile(r"data\.(\w+_)?dataset\.init_args\.(root|images|masks|annotations)")
_OF_A_FOLD = ("seed_everything", "trainer.max_epochs")
_OF_THE_RUN = ("wandb", "loggers", "output_dir", "name", "ckpt_path")
_OF_SHOWING = ("enable_progress_bar", "logger")
_SHOWING_CALLBACKS = {
    *("PredictionPanels", "EpochLines", "LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor", "Timer"),
    *("RichProgressBar", "TQDMProgressBar", "ModelSummary", "RichModelSummary"),
    *("CompileNetwork", "GradientCheckpointing"),  # which change the speed and the memory alone
}
"""Callbacks that change no result; all others may, as those that average or freeze weights."""
_OF_LOADING = ("fold", "fold_file", "num_workers", "cache", "eval_batch_size")


def setting_differences(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of each setting that differs, by dotted key.

    Args:
        base: Resolved configuration of `fit`.
        own: Another one. A newer version may know more keys, which are left out.
    """
    found = dict(_leaves(canonical(_of_training(base)), canonical(_of_training(own))))
    processes = _num_processes(base), _num_processes(own)
    if None not in processes and processes[0] != processes[1]:
        found[PROCESSES] = processes
    synchronised = tuple(bool((config.get("trainer") or {}).get("sync_batchnorm")) for config in (base, own))
    if synchronised[0] != synchronised[1] and min(number or 1 for number in processes) > 1:
        found["trainer.sync_batchnorm"] = synchronised[0], synchronised[1]
    return found


def is_data_location(key: str) -> bool:
    """Check whether a dotted key says where data lie."""
    return _PLACE.fullmatch(key) is not None


def recipe_differences(
    base: Mapping[str, Any], own: Mapping[str, Any], digests: tuple[str, str] = ("", "")
) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two trainings: settings, and images or labels as `DIGEST`.

    Args:
        base: Resolved configuration of `fit`.
        own: Another one.
        digests: Digests of both data; empty if unknown. Where they are equal, another place of the data is no
            difference.
    """
    found = setting_differences(base, own)
    if is_other_data(*digests):
        return {DIGEST: digests, **found}
    is_same = digests[0] and digests[0] == digests[1]
    return {key: values for key, values in found.items() if not (is_same and is_data_location(key))}


def fold_differences(experiment: Mapping[str, Any], fold: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of a fold's training that are not those of its experiment, with both values.

    Its seed and its number of epochs are its own, and the data may have been moved since.

    Args:
        experiment: Resolved configuration of the experiment.
        fold: That of the fold's training.
    """
    found = setting_differences(experiment, fold)
    return {key: values for key, values in found.items() if key not in _OF_A_FOLD and not is_data_location(key)}


def settings_hash(config: Mapping[str, Any]) -> str:
    """Make six hexadecimal digits from the settings that a result depends on.

    Args:
        config: Resolved configuration of `fit`.
    """
    settings = canonical(_of_training(config))
    trainer = settings.get("trainer")
    if isinstance(trainer, dict) and not trainer["callbacks"]:
        del trainer["callbacks"]  # groups of earlier versions keep their names
    image_format = (settings.get("data") or {}).get("image_format")
    if isinstance(image_format, dict) and image_format.get("nodata", 0) is None:
        del image_format["nodata"]  # likewise
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _of_training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a result depends on."""
    kept = {key: value for key, value in config.items() if key not in _OF_THE_RUN}
    for part, left_out in (("trainer", (*MACHINE_KEYS, *_OF_SHOWING)), ("data", _OF_LOADING)):
        if isinstance(kept.get(part), Mapping):
            kept[part] = {key: value for key, value in kept[part].items() if key not in left_out}
    if isinstance(kept.get("trainer"), dict):
        kept["trainer"]["callbacks"] = _changing_callbacks(kept["trainer"].get("callbacks"))
    return kept


def _num_processes(config: Mapping[str, Any]) -> int | None:
    """Return the number of processes of a training; None if the machine decides it."""
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping) or "devices" not in trainer:
        return None
    devices = trainer["devices"]
    if devices == "auto" and trainer.get("accelerator") == "cpu":
        devices = 1
    if isinstance(devices, str):
        parts = [part for part in devices.split(",") if part.strip()]
        devices = len(parts) if "," in devices else int(devices) if devices.isdigit() else None
    elif isinstance(devices, list | tuple):
        devices = len(devices)
    nodes = trainer.get("num_nodes") or 1
    return devices * nodes if isinstance(devices, int) and devices > 0 else None


def _changing_callbacks(callbacks: Any) -> list[Any]:
    """Return the callbacks that may change a result, in any order."""
    entries = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    named = [(_class_name(entry), entry) for entry in entries]
    return [entry for name, entry in sorted(named, key=str) if name not in _SHOWING_CALLBACKS]


def _class_name(entry: Any) -> str:
    path = entry.get("class_path") if isinstance(entry, Mapping) else entry
    return str(path).rpartition(".")[2]


def _leaves(base: Any, own: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield key and both values of the settings that differ."""
    if isinstance(base, Mapping) and isinstance(own, Mapping):
        for key in sorted(base.keys() & own.keys()):
            yield from _leaves(base[key], own[key], f"{prefix}.{key}" if prefix else str(key))
    elif base != own and not (base != base and own != own):  # NaN is NaN
        yield prefix, (base, own)
