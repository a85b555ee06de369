"""Choose the folder of a new experiment: an unused one, or that of an attempt that finished no epoch."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from deeplab_lightning.experiments.locks import take_lock
from deeplab_lightning.files import make_unused_folder, remove_if_empty
from deeplab_lightning.runs import ExperimentFolder, RunFolder


def take_folder(wanted: Path) -> tuple[Path, IO[str] | None]:
    """Make the folder of a new experiment, or empty that of an attempt which finished no epoch.

    Args:
        wanted: Path of the folder. If another experiment has it, a number is added to its name.

    Returns:
        The folder, and its lock, which keeps other processes from emptying it until the file is closed.
    """
    if _is_attempt(wanted) and (lock := lock_folder(wanted)) is not None:
        if _is_attempt(wanted) and not _is_running(wanted):
            _empty(wanted)
            return wanted, lock
        lock.close()
    folder = make_unused_folder(wanted)
    return folder, lock_folder(folder)


def lock_folder(folder: Path) -> IO[str] | None:
    """Lock the folder of an experiment until the returned file is closed; None if another process has locked it."""
    file = RunFolder(folder).lock.open("w")
    try:
        take_lock(file)
    except OSError:
        file.close()
        return None
    return file


def give_back(folder: Path) -> None:
    """Remove a folder that holds nothing but its lock."""
    lock = RunFolder(folder).lock
    if set(folder.iterdir()) <= {lock}:
        lock.unlink(missing_ok=True)
        remove_if_empty(folder)


def _is_attempt(folder: Path) -> bool:
    """Check whether a folder holds an experiment without any finished epoch or checkpoint, and nothing else."""
    if not folder.is_dir():
        return False
    is_experiment = RunFolder(folder).lock.is_file() or any(run.job.is_file() for run in _runs(folder))
    has_progress = any(
        run.metrics.is_file() or run.result.is_file() or any(run.checkpoints.glob("*.ckpt")) for run in _runs(folder)
    )
    return is_experiment and not has_progress and all(_own(part) for part in _parts(folder))


def _parts(folder: Path) -> list[ExperimentFolder]:
    """Return the experiment in a folder, and those of its seeds."""
    files = ExperimentFolder(folder)
    return [files, *files.seeds()]


def _runs(folder: Path) -> Iterator[RunFolder]:
    for part in _parts(folder):
        yield from part.runs()


def _own(files: ExperimentFolder) -> bool:
    """Check whether all files of an experiment's folder are those that it writes before the first epoch."""
    known = {files.config, files.folds, files.balance, RunFolder(files.path).lock}
    known |= {run.path for run in files.runs()} | {seed.path for seed in files.seeds()}
    return set(files.path.iterdir()) <= known


def _is_running(folder: Path) -> bool:
    """Check whether a process still trains a fold."""
    for run in _runs(folder):
        if run.lock.is_file():
            lock = lock_folder(run.path)
            if lock is None:
                return True
            lock.close()
    return False


def _empty(folder: Path) -> None:
    """Remove all but the lock."""
    files = ExperimentFolder(folder)
    for path in [*(run.path for run in files.runs()), *(seed.path for seed in files.seeds())]:
        shutil.rmtree(path)
    for path in (files.config, files.folds, files.balance):
        with suppress(FileNotFoundError):
            path.unlink()
