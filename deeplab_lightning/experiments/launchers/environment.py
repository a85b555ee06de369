"""Keep what other launchers say to their own processes from the processes that are started here."""

import os

from deeplab_lightning.runs import RUN_FOLDER_VARIABLE

SWEEP_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""What an agent of a W&B sweep sets for a trial: the trial is one run, and each of its folds another one."""
# Variables that another launcher, another training or W&B in this process set for their own children.
_FOREIGN = {"LOCAL_RANK", "RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR",
            "MASTER_PORT", "PL_GLOBAL_SEED", RUN_FOLDER_VARIABLE, "WANDB_SERVICE", *SWEEP_VARIABLES}  # fmt: skip
_FOREIGN_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "RAY_", "TORCHELASTIC_")
_KEPT = {"SLURM_CONF"}  # where the cluster is, which holds in every process


def own_environment() -> dict[str, str]:
    """Return the environment of a new command: that of this process without the marks of another launcher.

    In an allocation of SLURM, a training would otherwise take itself for one of the processes that `srun` started, and
    start none for its other devices.
    """
    return {key: value for key, value in os.environ.items() if not _is_foreign(key)}


def _is_foreign(key: str) -> bool:
    return key in _FOREIGN or (key.startswith(_FOREIGN_PREFIXES) and key not in _KEPT)
