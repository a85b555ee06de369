"""Start commands as tasks of a Ray cluster, which deals CPUs and GPUs, and starts lost tasks again."""

import contextlib
import os
import platform
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplab_lightning.connection import can_connect
from deeplab_lightning.errors import UnavailableError, UserError
from deeplab_lightning.experiments.jobs import Job, Process
from deeplab_lightning.experiments.launchers.environment import own_environment
from deeplab_lightning.experiments.launchers.local import FolderInUseError, LocalLauncher
from deeplab_lightning.experiments.launchers.options import RayOptions
from deeplab_lightning.experiments.launchers.place import check_place, describe_place
from deeplab_lightning.runs import RunFolder

_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_STOP_SECONDS = 15.0  # time for a training to end after it was cancelled
_OF_THE_NODE = {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HOSTNAME", "TMPDIR"}


def connect(options: RayOptions, *, is_starting: bool = False) -> None:
    """Connect this process to the cluster.

    Args:
        options: Options with its address.
        is_starting: Whether Ray starts on this machine, for this process alone, if no cluster runs here.

    Raises:
        UserError: If the address is none.
        UnavailableError: If Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise UnavailableError("--launcher ray needs the package ray: pip install 'deeplab_lightning[ray]'") from error
    advice = "Start one by `ray start --head`, or give its --launcher.address."
    if options.address is not None:
        host, _, port = options.address.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"launcher.address must be HOST:PORT, such as 10.0.0.1:6379, got {options.address!r}.")
        if not can_connect(host, int(port), seconds=_CONNECT_SECONDS):  # Ray itself tries for minutes
            raise UnavailableError(f"no Ray cluster answers at {options.address}. {advice}")
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    try:
        if not is_starting or options.address is not None:
            ray.init(options.address or "auto", **given)
            return
        # Not "auto", which joins any Ray of this machine, also one that another search started for itself and ends.
        try:
            ray.init(None, include_dashboard=False, **given)
        except ConnectionError:  # the last one that `ray start` started here is dead
            ray.init("local", include_dashboard=False, **given)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UnavailableError(f"no Ray cluster can be used: {' '.join(str(error).split())} {advice}") from error


def disconnect() -> None:
    """Leave the cluster, which ends what this process started there."""
    import ray

    ray.shutdown()


class RayLauncher:
    """Start commands as tasks of the Ray cluster that this process is connected to.

    Args:
        options: What each command asks for.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        self._place = describe_place()

    def start(self, job: Job, command: Sequence[str], slot: int) -> Process:
        """Start one command of a job as a task.

        Args:
            job: The job.
            command: Arguments of `deeplab`.
            slot: Not used, since Ray deals the devices.
        """
        import ray

        task = ray.remote(_run).options(
            name=job.name,
            num_cpus=self._options.cpus,
            num_gpus=self._options.gpus,
            max_retries=self._options.retries,
            retry_exceptions=[TrainingKilled],
        )
        given = (list(command), job.folder.absolute(), submitted_environment(), self._place)
        return RayProcess(task.remote(*given), job)


class RayProcess:
    """Wait for a task of Ray.

    Args:
        reference: Reference of its result.
        job: Its job, whose log gets what Ray says when the task is given up.
    """

    def __init__(self, reference: Any, job: Job) -> None:
        self._reference = reference
        self._job = job
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status; None while the command runs or waits, also for another start."""
        import ray

        if self._status is None and ray.wait([self._reference], timeout=0)[0]:
            try:
                self._status = ray.get(self._reference)
            except (ray.exceptions.RayError, UserError, OSError) as error:
                self._status = 1
                line = str(error).strip().splitlines()[-1]
                with RunFolder(self._job.folder).log.open("a", encoding="utf-8") as log:
                    log.write(f"Ray: {line}\n")
        return self._status

    def stop(self) -> None:
        """Cancel the task, which stops its training as SIGTERM does."""
        import ray

        ray.cancel(self._reference, force=False)

    def kill(self) -> None:
        """End the task and its training."""
        import ray

        if self.poll() is None:
            ray.cancel(self._reference, force=True)


class TrainingKilled(Exception):
    """Report a training that was killed, or has yet to end on a node that was lost, so that Ray starts it again."""


def _run(command: list[str], folder: Path, environment: Mapping[str, str], place: Mapping[str, str]) -> int:
    """Run a command on the node of a task, and return its exit status.

    Raises:
        UserError: If the node is not like the machine that submitted the task.
        TrainingKilled: If a signal ended it, or an earlier start of it still writes to the folder.
    """
    process = start_on_node(command, folder, environment, place)
    try:
        while (status := process.poll()) is None:
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:  # cancelled
        process.stop()
        end = time.monotonic() + _STOP_SECONDS
        while process.poll() is None and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        raise
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            process.kill()
    if is_killed(status):
        raise TrainingKilled(f"{folder.name} was ended by a signal on {platform.node()} (status {status})")
    return status


def is_killed(status: int) -> bool:
    """Check whether a signal ended a training with this exit status."""
    return status < 0 or status == 128 + signal.SIGTERM


def start_on_node(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], place: Mapping[str, str]
) -> Process:
    """Start a command in a process of a node, where a task or an actor of Ray calls this.

    Args:
        command: Arguments of `deeplab`.
        folder: Folder of the run.
        environment: Variables of the machine that submitted it, see `submitted_environment`.
        place: What `describe_place` returned there.

    Raises:
        UserError: If the node is not like the machine that submitted it.
        TrainingKilled: If another process still writes to the folder. A node that the cluster has lost, such as one
            without network, takes a minute to end its trainings.
    """
    node = platform.node()
    if not Path(place["folder"]).is_dir() or not folder.parent.is_dir():
        raise UserError(f"node {node} does not see {folder.parent}: output_dir must be on a disk that all nodes share.")
    os.chdir(place["folder"])
    check_place(place, node)
    os.environ.update(environment)
    try:
        return LocalLauncher().start(Job(folder.name, [command], folder, lambda: True), command, 0)
    except FolderInUseError as error:
        raise TrainingKilled(str(error)) from error


def submitted_environment() -> dict[str, str]:
    """Return the variables of this process that a training on another node gets as well."""
    return {key: value for key, value in own_environment().items() if key not in _OF_THE_NODE}
