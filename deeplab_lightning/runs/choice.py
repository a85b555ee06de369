"""Choose the folder of a run, in one process or in several."""

import itertools
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from deeplab_lightning.errors import UserError
from deeplab_lightning.files import make_unused_folder, write_text
from deeplab_lightning.runs.run import RunFolder

RUN_FOLDER_VARIABLE = "DEEPLAB_RUN_FOLDER"
"""Environment variable with the run's folder, for the processes that Lightning starts for DDP."""
SEARCH_VARIABLE = "DEEPLAB_SEARCH"
"""Environment variable with the name of the search whose trial a training is, see `SearchGate`."""
_MAX_WAIT = 300  # seconds for the first process to choose a folder
_choices = itertools.count()  # of folders in this process


def choose_run_folder(
    *, name: str | None, output_dir: str, checkpoint: str | None, model: Mapping[str, Any], is_training: bool
) -> RunFolder:
    """Choose the folder that a run writes to.

    A run that starts from the checkpoint of another run continues in that run's folder, unless it is a training with
    another name. Every other run gets a folder that does not exist yet. The processes of DDP use the folder that the
    first process chose, whether Lightning or torchrun starts them.

    Args:
        name: Name of the run; made from model and time if None.
        output_dir: Folder of all runs.
        checkpoint: Path of a checkpoint, `last` for the newest checkpoint of the named run, or None.
        model: `class_path` and `init_args` of the network.
        is_training: Whether the command is `fit`.
    """
    is_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not is_torchrun and int(os.environ.get("LOCAL_RANK", 0)) > 0 and RUN_FOLDER_VARIABLE in os.environ:
        return RunFolder(os.environ[RUN_FOLDER_VARIABLE])
    named = Path(output_dir) / name if name else None
    own = None if checkpoint in {None, "last"} else RunFolder.of_checkpoint(str(checkpoint))
    if checkpoint == "last" and named is not None:
        folder = RunFolder(named)
    elif own is not None and (not is_training or named is None or named.absolute() == own.path):
        folder = own
    else:
        folder = RunFolder(_new_folder(named or Path(output_dir) / made_up_name(model)))
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    return folder


def _new_folder(wanted: Path) -> Path:
    """Make the folder of a new run at once, so that no other run chooses it while this one still reads its data.

    Of processes that torchrun or srun started, the first one makes it, and tells the others.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import rendezvous  # slow to import

        store, rank, _ = next(iter(rendezvous("env://")))  # torchrun's own, which exists before any process group
        key = f"{RUN_FOLDER_VARIABLE}/{next(_choices)}"  # a script may choose several times, always in the same order
        if rank == 0:
            store.set(key, str(make_unused_folder(wanted)))
        return Path(store.get(key).decode())
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        step = "-".join(os.environ.get(key, "0") for key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
        note = wanted.parent / f".folder-{step}-{next(_choices)}"  # on a file system that all nodes share
        if int(os.environ.get("SLURM_PROCID", 0)) == 0:
            folder = make_unused_folder(wanted)
            write_text(note, str(folder))
            return folder
        return Path(_awaited(note))
    return make_unused_folder(wanted)


def _awaited(note: Path) -> str:
    """Read a file once it is there.

    Raises:
        UserError: If it is not there in time.
    """
    end = time.monotonic() + _MAX_WAIT
    while not note.is_file():
        if time.monotonic() > end:
            raise UserError(
                f"the first process made no run folder in {note.parent.absolute()}; is it on a shared disk?"
            )
        time.sleep(0.1)
    return note.read_text(encoding="utf-8")


def made_up_name(model: Mapping[str, Any], *, prefix: str = "") -> str:
    """Make the name of a run from network, backbone and time.

    Args:
        model: `class_path` and `init_args` of the network.
        prefix: First part of the name.
    """
    network = str(model["class_path"]).rsplit(".", 1)[-1].lower()
    backbone = str((model.get("init_args") or {}).get("backbone") or "")
    return "-".join(part for part in (prefix, network, backbone, f"{datetime.now():%Y%m%d-%H%M%S}") if part)
