"""Submit, query, requeue and cancel jobs of SLURM with its own commands.

Plain `sbatch` instead of submitit: what is started are commands, not functions, and their results are files. So no
package is needed, neither here nor on the nodes, and no accounting database.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deeplab_lightning.errors import UnavailableError
from deeplab_lightning.experiments.launchers.environment import own_environment
from deeplab_lightning.experiments.launchers.options import SlurmOptions

_TIMEOUT = 60  # seconds for an answer of the scheduler
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ACTIVE = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


class Task(NamedTuple):
    """Hold what SLURM says about a job, or about one job of an array.

    Attributes:
        state: State such as `PENDING`.
        node: Name of its node; empty if it has none.
        reason: Why it waits.
    """

    state: str
    node: str
    reason: str

    @property
    def is_waiting(self) -> bool:
        """Whether it has yet to start."""
        return self.state in _WAITING

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs, so that it may still write."""
        return self.state in _WAITING | _ACTIVE


def submit(script: str) -> str:
    """Submit a script and return the id of its job.

    Raises:
        UnavailableError: If there is no `sbatch`, or it refuses the script.
    """
    return _call(["sbatch", "--parsable"], script).strip().partition(";")[0]  # with the cluster's name after it


def tasks() -> dict[str, Task]:
    """Return the user's jobs by id such as `12`, or `12_0` in an array: waiting, running and those that ended lately.

    One query answers for all jobs, however many there are.

    Raises:
        UnavailableError: If the scheduler does not answer.
    """
    options = ["--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%N|%r"]
    lines = [line.split("|", 3) for line in _call(["squeue", *options]).splitlines()]
    return {line[0].strip(): Task(*(part.strip() for part in line[1:])) for line in lines if len(line) == 4}


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended are left out.

    Raises:
        UnavailableError: If the scheduler refuses.
    """
    _call(["scancel", *ids])


def requeue(job: str) -> None:
    """Put a running job into the queue again, which ends it.

    Raises:
        UnavailableError: If the scheduler refuses.
    """
    _call(["scontrol", "requeue", job])


def script(
    options: SlurmOptions,
    commands: Sequence[Sequence[str]],
    *,
    name: str,
    log: Path,
    at_once: int | None = None,
    after: str | None = None,
) -> str:
    """Return the script of an array of jobs, or of one job that waits for another one.

    Args:
        options: What each job asks for.
        commands: Program and arguments of each job.
        name: Name of the jobs.
        log: File that gets the output, with `%A` and `%a` for the ids.
        at_once: Number of jobs of the array that run at once; all if None.
        after: Id of a job that must have ended before, however it did.
    """
    limit = f"%{at_once}" if at_once else ""
    wanted = {
        "job-name": name,
        "array": None if after else f"0-{len(commands) - 1}{limit}",
        "dependency": f"afterany:{after}" if after else None,
        "output": log,
        "open-mode": "append",
        "chdir": Path.cwd(),
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": options.cpus,
        "gres": f"gpu:{options.gpus}" if options.gpus else None,
        "mem": options.memory,
        "signal": f"B:USR1@{options.grace}",
    }
    lines = [f"--{key}={shlex.quote(str(value))}" for key, value in wanted.items() if value is not None]
    header = "\n".join(f"#SBATCH {line}" for line in [*lines, "--requeue", *options.lines])
    cases = "\n".join(f"{index}) exec {shlex.join(command)} ;;" for index, command in enumerate(commands))
    return "\n".join([
        "#!/bin/bash",
        header,
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"',
        *options.setup,
        'case "${SLURM_ARRAY_TASK_ID:-0}" in',
        cases,
        "esac",
        "",
    ])  # fmt: skip


def _call(command: Sequence[str], text: str = "") -> str:
    """Run a command of SLURM, and return what it prints."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, env=own_environment(), check=False
        )
    except FileNotFoundError as error:
        raise UnavailableError(
            f"{command[0]} was not found: --launcher slurm needs a machine of the cluster on which SLURM's commands "
            "are installed, such as its login node."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{command[0]}: SLURM gave no answer within {_TIMEOUT} seconds.") from error
    if done.returncode:
        lines = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        raise UnavailableError(f"{command[0]} failed: {'; '.join(lines) or f'status {done.returncode}'}")
    return done.stdout
