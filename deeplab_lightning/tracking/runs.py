"""Read runs back from W&B, offline or from its server, and write them as folders of experiments."""

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from deeplab_lightning.errors import DataError, UserError
from deeplab_lightning.experiments.settings import HASH_LENGTH
from deeplab_lightning.runs import RECORD_FILES, ExperimentFolder, RunFolder
from deeplab_lightning.tracking.mode import api_key, can_answer
from deeplab_lightning.tracking.summary import CURVE_KEYS, MATRIX_KEY

_MAX_NAME = 100  # characters of a folder's name
_CV_JOB = "cv"  # job type of the pooled result of an experiment, which is no training


@dataclass(frozen=True)
class LoggedRun:
    """Hold the data of one training in W&B.

    Attributes:
        id: Id of the run, unique in its project.
        name: Name of the run as W&B displays it.
        project: Name of the project.
        group: Name of the experiment; None for a single run.
        job_type: `fold`, `cv`, or None.
        start: Start time, as text that sorts by time.
        config: Resolved configuration.
        summary: Figures by key, such as `best/miou`; a table's file has the key `<table>.path`.
        rows: Logged points of the validation curve, each with `epoch` and `val/miou`.
        fetch: Function from the name of a file of the run to its local path; None if the run has no such file.
    """

    id: str
    name: str
    project: str
    group: str | None
    job_type: str | None
    start: str
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    fetch: Callable[[str], Path | None]

    @property
    def experiment(self) -> str:
        """Return what tells the experiment from others: the group, or the run's own name without a group."""
        return self.group or self.name

    @property
    def title(self) -> str:
        """Return the name of the experiment without the hash of its settings, see `settings_hash`."""
        plain = self.experiment.rpartition("-")[0]
        folder = PurePath(str(self.config.get("output_dir", "")))  # of a fold, the experiment's
        return plain if plain and folder.parts[-plain.count("/") - 1 :] == PurePath(plain).parts else self.experiment

    @property
    def fold(self) -> int | None:
        """Return the validation fold; None for an official split."""
        data = self.config.get("data", {})
        fold = data.get("fold") if data.get("split") == "folds" else None
        if fold is not None and not (isinstance(fold, int) and fold >= 0):
            raise DataError(f"the W&B run {self.name} ({self.id}) has the fold {fold!r}, which is no number.")
        return fold

    @property
    def n_folds(self) -> int:
        """Return the number of folds of the split; 1 for an official split."""
        return int(self.config["data"].get("n_folds", 1)) if self.fold is not None else 1

    def missing(self) -> list[str]:
        """List the data that a comparison needs and the run lacks."""
        needed = {"the best mIoU": "best/miou", "the confusion matrix": f"{MATRIX_KEY}.path"}
        found = [name for name, key in needed.items() if self.summary.get(key) is None]
        return found if "data" in self.config else [*found, "the configuration"]


def has_offline_runs(folder: Path) -> bool:
    """Check whether a folder or its subfolders hold offline logs of W&B."""
    return next(_logs(folder), None) is not None


def offline_runs(folder: Path) -> tuple[list[LoggedRun], list[str]]:
    """Read the offline runs below a folder, sorted by start time.

    The parts of a run that was logged several times, such as before and after a `resume`, become one run.

    Args:
        folder: An `offline-run-*` folder, or a folder that contains some at any depth.

    Returns:
        The runs, and a note on each log that is left out since a kill or a full disk tore it.

    Raises:
        DataError: If no log can be read.
    """
    logs = sorted({path.resolve() for path in _logs(folder)})
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(_read_log_or_fault, logs))
    parts = [part for part in found if isinstance(part, LoggedRun)]
    faults = [fault for fault in found if isinstance(fault, DataError)]
    if faults and not parts:
        raise faults[0]
    by_id: dict[tuple[str, str], list[LoggedRun]] = defaultdict(list)
    for part in parts:
        by_id[part.project, part.id].append(part)
    runs = sorted((_merged(parts) for parts in by_id.values()), key=lambda run: run.start)
    return runs, [f"a W&B log is left out: {fault}" for fault in faults]


def online_runs(address: str, scratch: Path) -> list[LoggedRun]:
    """Read the runs of a group from the W&B server, sorted by start time.

    Args:
        address: `wandb:entity/project/group`. A name without the hash of its settings finds all groups of this name.
        scratch: Folder for downloaded files.

    Raises:
        ValueError: If the address has another form, there is no API key, the server does not answer, or it has no
            such project or group.
    """
    entity, project, group = _parsed(address)
    import wandb

    base_url = str(wandb.setup().settings.base_url)
    if not api_key(urlsplit(base_url).hostname or ""):
        raise DataError(f"{address} needs an account of {base_url}: run `wandb login`, or set WANDB_API_KEY.")
    if not can_answer(base_url):
        raise DataError(f"{address}: {base_url} does not answer. Check the network, or compare offline runs.")
    try:
        wanted = {"group": {"$regex": f"^{re.escape(group)}(-[0-9a-f]{{{HASH_LENGTH}}})?$"}}
        runs = list(wandb.Api(timeout=30).runs(f"{entity}/{project}", filters=wanted, lazy=False))
        found = [run for run in (_from_api(run, scratch) for run in runs) if group in {run.group, run.title}]
    except (ValueError, wandb.errors.Error) as error:
        raise DataError(
            f"{address}: {base_url} answers: {str(error).splitlines()[0]}. Check entity and project."
        ) from error
    if not found:
        raise DataError(f"{address}: the project {entity}/{project} has no run of the group {group!r}.")
    return sorted(found, key=lambda run: run.start)


def write_experiments(runs: Sequence[LoggedRun], scratch: Path, source: str) -> tuple[list[Path], list[str]]:
    """Write runs as the folders that `deeplab kfold` and `deeplab fit` write, one per experiment.

    Args:
        runs: Runs sorted by start time.
        scratch: Folder in which the folders are created.
        source: Folder or address that the runs were read from, for messages.

    Returns:
        The folders sorted by name, and notes on runs that were left out.

    Raises:
        ValueError: If there is no training, or no run of an experiment has the data that a comparison needs.
    """
    folders, notes = [], []
    groups: dict[tuple[str, str, int], list[LoggedRun]] = defaultdict(list)
    for run in runs:
        if run.job_type != _CV_JOB:
            groups[run.experiment, run.project, run.n_folds].append(run)
    if not groups:
        raise DataError(
            f"{source} holds no training, only the pooled result of an experiment. Name the folder of its folds' runs."
        )
    kinds = Counter((name, project) for name, project, _ in groups)
    named = defaultdict(set)
    for (name, project, _), members in groups.items():
        named[members[0].title, project].add(name)
    for (group, project, n_folds), members in sorted(groups.items()):
        name = members[0].title if len(named[members[0].title, project]) == 1 else group
        if kinds[group, project] > 1:
            notes.append(f"{name}: its runs split the data into different numbers of folds and are compared apart.")
            name = f"{name}-of-{n_folds}"
        finished = _finished(members, name, source)
        folder = _unused_folder(scratch, source, project, name)
        by_fold = {run.fold or 0: run for run in finished}  # the newest run of each fold
        if len(by_fold) < len(finished):
            notes.append(f"{name}: a fold was trained more than once; its newest finished run is used.")
        for fold, run in by_fold.items():
            attempts = [other for other in members if (other.fold or 0) == fold and other.start <= run.start]
            _write_run(run, _curve(attempts), folder, ExperimentFolder(folder).fold(fold))
        folders.append(folder)
    return folders, notes


def _finished(members: Sequence[LoggedRun], name: str, source: str) -> list[LoggedRun]:
    """Return the runs of an experiment that can be compared; at least one, or raise DataError."""
    finished = [run for run in members if not run.missing()]
    if not finished:
        lacking = "; ".join(f"{run.name} lacks {', '.join(run.missing())}" for run in members)
        raise DataError(f"{source}: no run of {name!r} has the data that a comparison needs: {lacking}.")
    return finished


def _unused_folder(scratch: Path, source: str, project: str, name: str) -> Path:
    """Return a path for an experiment; its parents tell experiments of the same name from two sources apart."""
    folder = scratch.joinpath(*map(_file_name, (source, project, name)))
    if folder.exists():
        return Path(tempfile.mkdtemp(dir=scratch)) / folder.parent.name / folder.name
    return folder


def _file_name(text: str) -> str:
    """Return a file name for any text, which names nothing outside its folder."""
    return re.sub(r"[^\w.,=()\[\] -]+", "-", text).strip("-. ")[:_MAX_NAME] or "unnamed"


def _logs(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("run-*.wandb") if path.is_file())


def _read_log_or_fault(path: Path) -> LoggedRun | DataError:
    """Read one offline log, or return why it cannot be read."""
    try:
        return _read_log(path)
    except DataError as fault:
        return fault


def _read_log(path: Path) -> LoggedRun:
    """Read one offline log.

    Raises:
        DataError: If it cannot be read.
    """
    run: dict[str, Any] = {}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    rows = []
    for record in _records(path):
        content = record.get(record["type"]) or {}
        match record["type"]:
            case "run":
                run |= content
                config |= content.get("config", {}).get("update", {})
            case "config":
                config |= content.get("update", {})
            case "summary":
                summary |= content.get("update", {})
            case "history" if all(key in content.get("item", {}) for key in CURVE_KEYS):
                rows.append({key: content["item"][key] for key in CURVE_KEYS})
            case _:
                pass
    if "run_id" not in run:
        raise DataError(f"{path}: is empty or cut off before its first record. Remove the folder {path.parent}.")
    return LoggedRun(
        id=run["run_id"],
        name=run.get("display_name") or run["run_id"],
        project=run.get("project") or "uncategorized",
        group=run.get("run_group") or None,
        job_type=run.get("job_type") or None,
        start=run.get("start_time", ""),
        config=config,
        summary=summary,
        rows=rows,
        fetch=partial(_file_below, path.parent / "files"),
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, decoded by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        import wandb

        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(
            f"{path}: wandb {wandb.__version__} cannot read it ({reason}). Version 0.31 or newer reads logs."
        )
    yield from map(json.loads, filter(None, done.stdout.split("\n")))


def _file_below(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _merged(parts: list[LoggedRun]) -> LoggedRun:
    """Merge the parts that were logged under the id of one run."""
    parts = sorted(parts, key=lambda part: part.start)
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for part in parts:
        config |= part.config
        summary |= part.summary

    def fetch(name: str) -> Path | None:
        return next((path for part in reversed(parts) if (path := part.fetch(name))), None)

    last = parts[-1]
    return LoggedRun(
        id=last.id,
        name=last.name,
        project=last.project,
        group=last.group,
        job_type=last.job_type,
        start=parts[0].start,
        config=config,
        summary=summary,
        rows=_curve(parts),
        fetch=fetch,
    )


def _parsed(address: str) -> tuple[str, str, str]:
    parts = address.removeprefix("wandb:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise UserError(f"W&B runs must be given as wandb:entity/project/group, got {address!r}.")
    return parts[0], parts[1], parts[2]


def _from_api(run: Any, scratch: Path) -> LoggedRun:
    """Convert a run of `wandb.Api`."""
    summary = {str(key): value for key, value in dict(run.summary).items()}
    table = summary.get(MATRIX_KEY)
    if table is not None and table.get("path"):
        summary[f"{MATRIX_KEY}.path"] = table["path"]
    return LoggedRun(
        id=run.id,
        name=run.name,
        project=run.project,
        group=run.group,
        job_type=run.job_type,
        start=str(run.created_at),
        config=dict(run.config),
        summary=summary,
        rows=list(run.scan_history(keys=list(CURVE_KEYS))),
        fetch=partial(_download, run, scratch / "files" / run.id),
    )


def _download(run: Any, folder: Path, name: str) -> Path | None:
    for file in run.files(names=[name]):
        file.download(root=str(folder), exist_ok=True).close()
        return folder / name
    return None


def _curve(attempts: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Join the curves of a resumed training: each attempt counts up to the epoch at which the next one starts."""
    rows: dict[int, dict[str, Any]] = {}
    for attempt in attempts:
        own = {int(row["epoch"]): row for row in attempt.rows}
        first = min(own, default=math.inf)
        rows = {epoch: row for epoch, row in rows.items() if epoch < first} | own
    return [rows[epoch] for epoch in sorted(rows)]


def _write_run(run: LoggedRun, rows: Sequence[dict[str, Any]], experiment: Path, folder: RunFolder) -> None:
    """Write the files of a run's folder as `RunRecord` does."""
    path = run.fetch(run.summary[f"{MATRIX_KEY}.path"])
    if path is None:
        raise DataError(f"the W&B run {run.name} ({run.id}) refers to the table {MATRIX_KEY}, but its file is missing.")
    table = json.loads(path.read_text())
    class_names = [str(name) for name in table["columns"][1:]]
    cost = {key: run.summary.get(f"cost/{key}") for key in ("mega_parameters", "giga_macs")}
    val = {"miou": run.summary["best/miou"], "iou": {name: run.summary.get(f"best/iou/{name}") for name in class_names}}
    result = {
        "fold": run.fold,
        "n_folds": run.n_folds if run.fold is not None else None,
        "seed": run.config.get("seed_everything"),
        "seconds": run.summary.get("cost/seconds"),
        "cost": cost,
        "val": val,
    }
    counts = [row[1:] for row in table["data"]]
    folder.write_confusion(counts, class_names)
    folder.write_metrics([{key: row[key] for key in CURVE_KEYS} for row in rows])
    for name in RECORD_FILES:
        if source := run.fetch(name):
            shutil.copyfile(source, folder.path / name)
            if name != folder.images.name:  # the other files are the same for all folds
                shutil.copyfile(source, experiment / name)
    folder.write_result(result)
