"""Show the settings in which experiments differ, and where their results come from."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.entries import Entry
from deeplab_lightning.experiments.repetitions import read_config
from deeplab_lightning.experiments.verdict import differing_settings
from deeplab_lightning.runs import ExperimentFolder

_MAX_VALUE = 120  # characters of a setting in the table of differences
_OWN = {"deeplab_lightning": "version"}
_MAX_SHOWN = 4  # different values in one cell


def settings_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return key and values of each setting in which any experiment differs from the first one."""
    configs = [read_config(entry.folder) for entry in entries]
    found: dict[str, dict[int, Any]] = {}
    for index, config in enumerate(configs[1:], start=1):
        digests = (entries[0].cv.digest, entries[index].cv.digest)
        for key, (base, own) in differing_settings(configs[0], config, digests).items():
            found.setdefault(key, {0: base})[index] = own
    return [
        {"key": key, "cells": [_short(values.get(index, values[0])) for index in range(len(entries))]}
        for key, values in sorted(found.items())
    ]


def all_settings(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Return name and full configuration of each experiment that has one."""
    configs = [(entry.label, read_config(entry.folder)) for entry in entries]
    return [{"name": name, "text": yaml.safe_dump(config, sort_keys=False)} for name, config in configs if config]


def origin_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return what the folders of the trainings say about their origin, one row per fact and one cell per experiment.

    Facts that no folder holds are left out.
    """
    columns = [_facts(entry) for entry in entries]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [{"name": name, "cells": [column.get(name, "") for column in columns]} for name in names]
    return [row for row in rows if any(row["cells"])]


def folder_link(entry: Entry, page: Path) -> str:
    """Return the address of an experiment's folder for a page; empty for one that was read from W&B.

    Args:
        entry: The experiment.
        page: Path of the page.
    """
    is_of_seeds = len(entry.folders) > 1 and entry.folder.name.startswith("seed_")
    folder = entry.folder.parent if is_of_seeds else entry.folder
    if not ExperimentFolder(entry.folder).config.is_file():
        return ""
    relative = os.path.relpath(folder.absolute(), page.absolute().parent)
    return quote(Path(relative).as_posix()) + "/"


def _facts(entry: Entry) -> dict[str, str]:
    results = []
    for run in (run for folder in entry.folders for run in ExperimentFolder(folder).runs()):
        with suppress(DataError):  # damaged, as a note says
            if result := run.read_result():
                results.append(result)
    versions = [result.get("versions") or {} for result in results]
    seconds = [result.get("seconds") for result in results]
    known = [value for value in seconds if value is not None]
    seeds = f", {len(entry.folders)} seeds" if len(entry.folders) > 1 else ""
    trainings = f"{len(results)} ({len(entry.cv.folds)} of {entry.cv.n_folds} folds{seeds})"
    finished = max((str(result["finished"]) for result in results if result.get("finished")), default="")
    return {
        "data": _distinct(result.get("dataset") for result in results),
        "digest of the data": _distinct(result.get("data_digest") for result in results),
        "pictures": _distinct(result.get("num_images") for result in results),
        "trainings": trainings,
        "epochs": _distinct(result.get("epochs") for result in results),
        "seeds": _distinct(result.get("seed") for result in results),
        "hours": f"{sum(known) / 3600:.2f}" if known and len(known) == len(seconds) else "",
        "finished": finished.replace("T", " ").replace("+00:00", " UTC"),
        "command": _distinct(result.get("command") for result in results[:1]),
        "commit": _distinct(result.get("commit") for result in results),
        **{_OWN.get(name, name): _distinct(own.get(name) for own in versions) for name in _names(versions)},
    }


def _names(versions: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for own in versions for name in own))


def _distinct(values: Any) -> str:
    """List the different values that are known."""
    found = list(dict.fromkeys(str(value) for value in values if value is not None))
    more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    return ", ".join(found[:_MAX_SHOWN]) + more


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"
