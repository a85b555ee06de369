"""Find the run's folder of a training whose job SLURM starts again, so that it goes on there."""

import hashlib
import os
import sys
from pathlib import Path

from deeplab_lightning.files import write_text
from deeplab_lightning.runs import RunFolder


def restarted_run(output_dir: str) -> RunFolder | None:
    """Return the folder that the same command of this job chose before the job was put into the queue again.

    Args:
        output_dir: Folder of all runs.

    Returns:
        The folder; None if the job runs for the first time, or this is no job of SLURM.
    """
    note = _note(output_dir)
    if note is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not note.is_file():
        return None
    return RunFolder(note.read_text(encoding="utf-8"))


def note_run(output_dir: str, run: RunFolder) -> None:
    """Note the folder that a job of SLURM chose; elsewhere, do nothing.

    Args:
        output_dir: Folder of all runs.
        run: The chosen folder.
    """
    note = _note(output_dir)
    if note is not None and os.environ.get("SLURM_PROCID", "0") == "0":
        write_text(note, str(run))


def _note(output_dir: str) -> Path | None:
    """Return the path of the note of this job and this command; None outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    command = hashlib.sha256("\0".join(sys.argv[1:]).encode()).hexdigest()[:12]
    return None if job is None else Path(output_dir) / f".slurm-{job}-{command}"
