"""Start commands on this machine, each in a process group of its own."""

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.jobs import Job, Process
from deeplab_lightning.experiments.launchers.environment import own_environment
from deeplab_lightning.experiments.locks import take_lock
from deeplab_lightning.runs import RunFolder

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_MAX_LOCK_WAIT = 15.0  # seconds that the processes of a killed training may take to end


class FolderInUseError(UserError):
    """Report a folder that another process writes to."""


class LocalProcess:
    """Run a command in a process group on this machine, which ends when this process ends.

    Args:
        arguments: Program and arguments.
        environment: All environment variables.
        log: File that gets the output.
        lock: Locked file, held open until the last process of the group has ended.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], lock: IO[str]) -> None:
        self._process = subprocess.Popen(
            arguments,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            preexec_fn=_die_with_parent,
        )

    def poll(self) -> int | None:
        """Return the exit status; None while the command runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Send SIGTERM to the process group."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group, and wait for the command's end."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@dataclass(frozen=True)
class LocalLauncher:
    """Start commands on this machine.

    Args:
        jobs: Number of jobs that run at once.
        devices: GPU indices to distribute among the jobs; if empty, each command chooses its devices.
    """

    jobs: int = 1
    devices: Sequence[str] = ()

    def start(self, job: Job, command: Sequence[str], slot: int) -> Process:
        """Start one command of a job in a process of its own.

        Args:
            job: The job.
            command: Arguments of `deeplab`.
            slot: Number of the job among those that run at once, from 0; it decides the devices.

        Raises:
            FolderInUseError: If another process still writes to the job's folder.
        """
        job.folder.mkdir(parents=True, exist_ok=True)
        environment = {**own_environment(), "PYTHONUNBUFFERED": "1"}
        if self.devices:
            own = self.devices[slot :: self.jobs] or [self.devices[slot % len(self.devices)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        if self.jobs > 1:  # otherwise each job would use all cores
            share = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(share))
        with locked(job.folder) as lock, RunFolder(job.folder).log.open("ab") as log:
            return LocalProcess([sys.executable, "-m", "deeplab_lightning", *command], environment, log, lock)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Keep other processes out of a job's folder, until the file and its copies in other processes are closed.

    Args:
        folder: The folder.

    Raises:
        FolderInUseError: If another process writes there.
    """
    with RunFolder(folder).lock.open("w") as lock:
        if not _is_locked(lock):
            raise FolderInUseError(f"{folder}: another process still writes here. Wait until it ends, or stop it.")
        yield lock


def _is_locked(lock: IO[str]) -> bool:
    """Lock a file, and check whether that succeeded; the processes of a killed training need seconds to end.

    Some file systems that several machines share know no locks. There, the record of the queue keeps jobs apart.
    """
    end = time.monotonic() + _MAX_LOCK_WAIT
    while True:
        try:
            take_lock(lock)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return True
        else:
            return True


def _die_with_parent() -> None:
    """Ask the Linux kernel to kill this process when its parent ends; do nothing on other systems."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
